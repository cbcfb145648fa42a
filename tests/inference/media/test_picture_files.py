"""Infotext in picture files, byte for byte where A1111 puts it."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from inference.images.infotext.other_programs import read_other_programs, translate
from inference.images.infotext.reading import read_infotext
from inference.images.infotext.text import parse_infotext
from inference.media.pictures import (
    decode_comment,
    fitting_format,
    save_picture,
    save_png,
    user_comment,
)
from inference.runtime.errors import InputError

INFOTEXT = 'a cat, "é"\nSteps: 20, Sampler: Euler, CFG scale: 7, Size: 3x2'
IMAGE = Image.new("RGB", (3, 2), "red")


@pytest.mark.parametrize("text", ["a cat\nSteps: 3", "a cat é", "猫, 絵文字\nSteps: 3", "🙂"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "avif", "gif"])
def test_every_format_keeps_infotext(tmp_path, suffix, text):
    path = tmp_path / f"a.{suffix}"
    save_picture(path, IMAGE, text)
    assert read_infotext(path) == text
    with Image.open(path) as image:
        assert image.size == IMAGE.size
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("text", "kind"), [("a cat é", b"tEXt"), ("猫", b"iTXt")])
def test_png_chunk_is_latin_1_if_it_can_be(tmp_path, text, kind):
    save_png(tmp_path / "a.png", IMAGE, {"parameters": text})
    assert kind + b"parameters\0" in (tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read), np.asarray(IMAGE))


def test_exif_is_that_of_piexif():
    # piexif.dump({"Exif": {UserComment: UserComment.dump("aé猫🙂", encoding="unicode")}})
    assert user_comment("aé猫🙂") == bytes.fromhex(
        "457869660000 4d4d002a00000008 0001 8769 0004 00000001 0000001a 00000000"
        "0001 9286 0007 00000012 00000028 554e49434f444500 0061 00e9 732b d83d de42"
    )


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_exif_stands_in_the_file_as_it_is(tmp_path, suffix):
    save_picture(tmp_path / f"a.{suffix}", IMAGE, INFOTEXT)
    assert user_comment(INFOTEXT)[6:] in (tmp_path / f"a.{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0\0a\0b", "ab"),
        (b"UNICODE\0a\0b\0", "ab"),  # the wrong order of bytes
        (b"UNICODE\0\xff\xfea\0b\0", "ab"),
        (b"ASCII\0\0\0ab\0", "ab"),
        (b"\0\0\0\0\0\0\0\0ab", "ab"),
        (b"JIS\0\0\0\0\0\x83\x41", "ア"),
        ("aé, more text".encode(), "aé, more text"),
        (b"UNICODE\0\0a\0", "a\ufffd"),
    ],
)
def test_comments_of_other_encodings(comment, text):
    assert decode_comment(comment) == text


def test_halves_of_surrogate_pairs_do_no_harm(tmp_path):
    for name in ("a.png", "a.jpg"):
        save_picture(tmp_path / name, IMAGE, "a\ud800b")
        assert read_infotext(tmp_path / name) == "a\ufffdb"


def test_transparent_picture_becomes_a_jpeg(tmp_path):
    save_picture(tmp_path / "a.jpg", Image.new("RGBA", (3, 2)), INFOTEXT)
    assert read_infotext(tmp_path / "a.jpg") == INFOTEXT


def test_quality_is_heard(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for suffix in ("jpg", "webp", "avif"):
        for quality in (10, 95):
            save_picture(tmp_path / f"{quality}.{suffix}", Image.fromarray(noise), "", quality)
        low, high = (tmp_path / f"{quality}.{suffix}" for quality in (10, 95))
        assert low.stat().st_size < high.stat().st_size


@pytest.mark.parametrize(
    ("size", "length", "wanted", "got"),
    [
        ((65535, 1), 0, "jpg", "jpg"),
        ((65536, 1), 0, "jpg", "png"),
        ((1, 16383), 0, "webp", "webp"),
        ((1, 16384), 0, "webp", "png"),
        ((1, 70000), 0, "png", "png"),
        ((8, 8), 32739, "jpg", "jpg"),
        ((8, 8), 32740, "jpg", "png"),
        ((8, 8), 32740, "webp", "webp"),
    ],
)
def test_what_is_too_large_becomes_a_png(size, length, wanted, got, recwarn):
    assert fitting_format(size, "x" * length, wanted) == got
    assert len(recwarn) == (wanted != got)


def test_longest_infotext_of_a_jpeg(tmp_path):
    save_picture(tmp_path / "a.jpg", IMAGE, "x" * 32739)
    assert read_infotext(tmp_path / "a.jpg") == "x" * 32739


def test_unknown_ending(tmp_path):
    with pytest.raises(ValueError, match=r"pictures end in \.png"):
        save_picture(tmp_path / "a.bmp", IMAGE, INFOTEXT)


def test_picture_without_infotext(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp"):
        IMAGE.save(tmp_path / name)
        assert read_infotext(tmp_path / name) is None


@pytest.mark.parametrize(
    ("beside", "read"), [(f"{INFOTEXT}\n", INFOTEXT), ("a caption, mood: dark", None), ("", None)]
)
def test_text_beside_a_picture(tmp_path, beside, read):
    IMAGE.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(beside, encoding="utf-8")
    assert read_infotext(tmp_path / "a.png") == read


def test_text_beside_that_is_no_text(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    assert read_infotext(tmp_path / "a.png") is None


GRAPH = '{"1": {"class_type": "KSampler", "inputs": {}}}'
NOVEL_AI = {"steps": 28, "sampler": "k_euler_ancestral", "seed": 3, "scale": 11.0, "uc": "bad"}


def with_texts(path, texts):
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    IMAGE.save(path, pnginfo=chunks)
    return path


def test_novel_ai_is_translated(tmp_path):
    texts = {"Software": "NovelAI", "Description": "a cat", "Comment": json.dumps(NOVEL_AI)}
    assert read_infotext(with_texts(tmp_path / "a.png", texts)) == (
        "a cat\nNegative prompt: bad\nSteps: 28, Sampler: Euler a, CFG scale: 11, Seed: 3, "
        "Size: 3x2, Clip skip: 2, ENSD: 31337"
    )
    texts["Comment"] = "{"
    with pytest.raises(InputError, match=r"NovelAI's Comment is not JSON.*line 1 column 2"):
        read_infotext(with_texts(tmp_path / "b.png", texts))


def test_other_programs_want_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sd_parsers", None)
    assert read_other_programs(with_texts(tmp_path / "a.png", {"Author": "me"})) is None
    comfy = with_texts(tmp_path / "b.png", {"prompt": GRAPH, "workflow": "{}"})
    with pytest.raises(InputError, match=r"drawn by ComfyUI.*pip install 'limner\[metadata\]'"):
        read_other_programs(comfy)


def test_other_programs_are_translated():
    model = SimpleNamespace(name="folder\\sd15.safetensors", hash=None)
    parameters = {"steps": 20, "cfg_scale": 8.0, "seed": 5, "scheduler": "sgm_uniform"}
    sampler = SimpleNamespace(name="dpmpp_2m", parameters=parameters, model=model)
    found = SimpleNamespace(
        samplers=[sampler], full_prompt="a cat", full_negative_prompt="",
        generator=SimpleNamespace(value="ComfyUI"),
    )  # fmt: skip
    assert translate(found, (64, 64)) == (
        "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG scale: 8, Seed: 5, "
        "Size: 64x64, Model: sd15, RNG: CPU, Version: ComfyUI"
    )
    parameters["denoise"] = 0.5
    assert parse_infotext(translate(found, (8, 8))).parameters["Denoising strength"] == "0.5"
