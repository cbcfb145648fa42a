"""Infotext as A1111 writes and reads it."""

import dataclasses
import hashlib
import json
import random
import string

import numpy as np
import pytest
from PIL import Image

from inference.config import ImageConfig
from inference.hashes import artifact_hash, lora_hash, read_header, sha256
from inference.infotext import (
    Infotext,
    UsedArtifact,
    describe_drawing,
    parse_infotext,
    quote,
    read_infotext,
    save_png,
    unquote,
    write_infotext,
)

# As the web UI's own documentation and files show it.
FROM_A1111 = """\
a photo of (sks dog:1.2) in a bucket, <lora:dog:0.8>
second line
Negative prompt: blurry, low quality
and a second line: of it
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, \
Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.7, \
Clip skip: 2, Hires upscale: 2, Lora hashes: "dog: 39f7ae2f3d15, cat: e1e6dd3f0a2b", \
Version: v1.10.1"""

REQUEST = ImageConfig(prompt="a cat", seed=7, width=16, height=24)


def test_reads_what_a1111_writes():
    found = parse_infotext(FROM_A1111)
    assert found.prompt == "a photo of (sks dog:1.2) in a bucket, <lora:dog:0.8>\nsecond line"
    assert found.negative_prompt == "blurry, low quality\nand a second line: of it"
    assert found.parameters["Sampler"] == "DPM++ 2M"
    assert found.parameters["CFG scale"] == "7.5"
    assert found.parameters["Size"] == "512x768"
    assert found.parameters["Lora hashes"] == "dog: 39f7ae2f3d15, cat: e1e6dd3f0a2b"
    assert list(found.parameters)[-1] == "Version"
    assert len(found.parameters) == 13


def test_writes_what_a1111_wrote():
    found = parse_infotext(FROM_A1111)
    written = write_infotext(found.prompt, found.negative_prompt, found.parameters)
    assert written == FROM_A1111


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Karras", "Karras"),
        ("a b", "a b"),
        ("a, b", '"a, b"'),
        ("a: b", '"a: b"'),
        ("a\nb", '"a\\nb"'),
        ('say "x", y', '"say \\"x\\", y"'),
        ("Ä, 絵", '"Ä, 絵"'),
        ('a"b', 'a"b'),
        ('"a"', '"\\"a\\""'),
        ("", '""'),
        (" a", '" a"'),
    ],
)
def test_values_are_quoted_where_they_could_be_misread(value, written):
    assert quote(value) == written
    assert unquote(written) == value


def test_text_that_only_looks_quoted_stays():
    assert unquote('"a" and "b"') == '"a" and "b"'
    assert unquote('"') == '"'


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"Steps": 20, "CFG scale": 7.0, "ENSD": None}, "Steps: 20, CFG scale: 7"),
        ({"Steps": 1, "CFG scale": 7.5, "Tiling": "Tiling"}, "Steps: 1, CFG scale: 7.5, Tiling"),
        ({"Steps": 1, "Seed": 2**63 - 1}, "Steps: 1, Seed: 9223372036854775807"),
    ],
)
def test_parameter_line(parameters, line):
    assert write_infotext("p", "", parameters) == f"p\n{line}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Infotext("")),
        ("only a prompt", Infotext("only a prompt")),
        ("a cat, mood: dark", Infotext("a cat, mood: dark")),  # too few to be parameters
        ("Negative prompt: x", Infotext("", "x")),
        ("Steps: 3", Infotext("", "", {"Steps": "3"})),
        ("p\nSteps: 3, N: 2", Infotext("p", "", {"Steps": "3", "N": "2"})),
        ("p\nA: 1, Bb: , C: 2", Infotext("p", "", {"A": "1", "Bb": "", "C": "2"})),
        (
            "p\nnegative prompt: q\nAa: 1, Bb: 2, Cc: 3",
            Infotext("p\nnegative prompt: q", "", {"Aa": "1", "Bb": "2", "Cc": "3"}),
        ),
        (
            'p\nSteps: 1, Template: "a: {b|c},\\n\\"d\\"", Size: 512×512',
            Infotext(
                "p", "", {"Steps": "1", "Template": 'a: {b|c},\n"d"', "Size": "512×512"}
            ),
        ),
    ],
)  # fmt: skip
def test_reads(text, expected):
    assert parse_infotext(text) == expected


def test_everything_written_is_read_back():
    randomness = random.Random(0)
    signs = string.ascii_letters + ' ,:"\\\n()[]<>|{}%é絵🙂-'

    def text(longest=30):
        return "".join(randomness.choices(signs, k=randomness.randrange(longest)))

    for _ in range(1000):
        prompt, negative = text().strip(), text()
        names = randomness.sample(["Steps", "Sampler", "CFG scale", "N", "Hires resize-1"], 4)
        parameters = {"Steps": "20", **{name: text() for name in names if name != "Steps"}}
        written = write_infotext(prompt, negative, parameters)
        assert parse_infotext(written) == Infotext(prompt, negative, parameters)


def test_drawing_is_told_in_a1111s_words_and_order(tiny_base, tiny_base_folder):
    model_hash = sha256(tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors")[:10]
    tiny_base.clip_skip = 2
    request = dataclasses.replace(REQUEST, negative_prompt="dog", cfg_scale=4.0)
    text = describe_drawing(request, tiny_base)
    before, _, version = text.rpartition(", Version: ")
    assert before == (
        "a cat\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
        f"CFG scale: 4, Seed: 7, Size: 16x24, Model hash: {model_hash}, "
        f"Model: {tiny_base_folder.name}, Clip skip: 2, RNG: CPU"
    )
    assert version.startswith("limner")


@pytest.mark.parametrize(
    ("sampler", "eta", "told"),
    [
        ("Euler a", None, {}),
        ("Euler a", 1.0, {}),
        ("Euler a", 0.5, {"Eta": "0.5"}),
        ("DDIM", 0.0, {}),
        ("DDIM", 1.0, {"Eta DDIM": "1"}),
        ("Euler", 0.5, {}),
    ],
)
def test_eta_is_told_where_it_is_not_the_usual_one(tiny_base, sampler, eta, told):
    request = dataclasses.replace(REQUEST, sampler=sampler, eta=eta)
    parameters = parse_infotext(describe_drawing(request, tiny_base)).parameters
    assert {key: value for key, value in parameters.items() if key.startswith("Eta")} == told


def test_loras_at_work_are_told(tiny_base):
    used = [
        UsedArtifact("lora", "icons", 0.5, "0123456789abcdef"),
        UsedArtifact("lora", "od,d:name", 1.0, "fedcba9876543210"),
        UsedArtifact("lora", "off", 0.0, "0" * 16),
        UsedArtifact("lora", "unsaved", 1.0),
    ]
    found = parse_infotext(describe_drawing(REQUEST, tiny_base, used))
    assert found.prompt == "a cat <lora:icons:0.5> <lora:od,d:name:1> <lora:unsaved:1>"
    assert found.parameters["Lora hashes"] == "icons: 0123456789ab, oddname: fedcba987654"


def test_checkpoint_takes_the_base_models_place(tiny_base):
    used = [UsedArtifact("checkpoint", "mine", 1.0, "0123456789abcdef")]
    found = parse_infotext(describe_drawing(REQUEST, tiny_base, used))
    assert found.prompt == "a cat"
    assert (found.parameters["Model"], found.parameters["Model hash"]) == ("mine", "0123456789")


@pytest.mark.parametrize("text", [FROM_A1111, "a cat é", "猫, 絵文字\nSteps: 3", "🙂"])
def test_png_keeps_infotext(tmp_path, text):
    path = tmp_path / "a.png"
    image = Image.new("RGB", (3, 2), "red")
    save_png(path, image, {"parameters": text})
    assert read_infotext(path) == text
    with Image.open(path) as read:
        assert np.array_equal(np.asarray(read), np.asarray(image))
    kind = b"tEXt" if text.isascii() or text == "a cat é" else b"iTXt"
    assert kind + b"parameters\0" in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_picture_without_infotext(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    assert read_infotext(tmp_path / "a.png") is None


def safetensors(path, metadata, content=b"\0\0\0\0"):
    header = {"__metadata__": metadata} if metadata else {}
    header["a"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_lora_hash_is_that_of_the_weights(tmp_path):
    weights = hashlib.sha256(b"\0\0\0\0").hexdigest()
    plain = safetensors(tmp_path / "a.safetensors", {})
    told = safetensors(tmp_path / "b.safetensors", {"ss_steps": "3"})
    own_word = safetensors(tmp_path / "c.safetensors", {"sshs_model_hash": "ab" * 32})
    assert lora_hash(plain) == lora_hash(told) == artifact_hash(told, "lora") == weights
    assert lora_hash(own_word) == "ab" * 32
    assert sha256(plain) != sha256(told)
    assert read_header(told)["__metadata__"] == {"ss_steps": "3"}
    pickle = tmp_path / "d.pt"
    pickle.write_bytes(b"x")
    assert lora_hash(pickle) == hashlib.sha256(b"x").hexdigest()


def test_hash_is_taken_anew_when_the_file_changes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    first = sha256(path)
    path.write_bytes(b"22")
    assert sha256(path) == hashlib.sha256(b"22").hexdigest() != first


def test_folder_is_known_by_its_unet(tiny_base_folder, tmp_path):
    file = tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert artifact_hash(tiny_base_folder, "checkpoint") == sha256(file)
    assert artifact_hash(tmp_path, "checkpoint") is None
