"""Recipes made from infotext, and pictures drawn once more."""

import hashlib
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.__main__ import main
from inference.config.recipes import draw_schema
from inference.images.infotext.reading import read_infotext
from inference.images.infotext.text import parse_infotext
from inference.images.redraw import (
    is_picture,
    load_picture,
    recipe_from_infotext,
    recipe_from_picture,
)
from inference.media.pictures import save_picture
from inference.models.finding import find_model, find_named
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_mapping
from inference.runtime.errors import InputError

USUAL = "Steps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 7, Seed: 5, Size: 64x32"
REST = "Model: picto, RNG: CPU"


def settings(line, **options):
    """What a line of parameters becomes beside the usual, and the notes."""
    made = recipe_from_infotext(f"p\n{USUAL}, {REST}, {line}", **options)
    usual = {"steps": 20, "sampler": "Euler", "schedule_type": "Automatic", "cfg_scale": 7.0,
             "seed": 5, "width": 64, "height": 32, "rng": "CPU"}  # fmt: skip
    found = made.recipe["settings"]
    return {key: value for key, value in found.items() if usual.get(key) != value}, made.notes


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Version: v1.10.1", {}),
        ("Sampler: DPM++ 2M Karras", {"sampler": "DPM++ 2M", "schedule_type": "Karras"}),
        ("Sampler: DPM++ 2M, Version: v1.8.0",  # Schedule type: Automatic was not written then
         {"sampler": "DPM++ 2M", "schedule_type": "Uniform"}),
        ("Sampler: DPM++ 2M, Version: v1.9.0", {"sampler": "DPM++ 2M"}),
        ("Size: 16×24", {"width": 16, "height": 24}),
        ("Variation seed: 3, Variation seed strength: 0.5, Seed resize from: 8x16",
         {"variation_seed": 3, "variation_strength": 0.5, "seed_resize_from_width": 8,
          "seed_resize_from_height": 16}),
        ("ENSD: 31337, Eta DDIM: 0.5, Tiling: True, Emphasis: No norm",
         {"ensd": 31337, "eta": 0.5, "tiling": True, "emphasis": "No norm"}),
        ("Tiling, Pad conds: False", {"tiling": True, "pad_conds": False}),
        ("Schedule min sigma: 0.1, Schedule max sigma: 0, Discard penultimate sigma: True",
         {"schedule": {"sigma_min": 0.1, "discard_next_to_last_sigma": True}}),
        ("Sigma churn: 1, NGMS: 2, Skip Early CFG: 0.1",
         {"s_churn": 1.0, "s_min_uncond": 2.0, "skip_early_cond": 0.1}),
        ("Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 3, Hires upscaler: Latent, "
         "Hires sampler: DPM++ 2M Karras, Hires prompt: \"a, b\", Hires checkpoint: "
         "Use same checkpoint",
         {"hires": {"denoising_strength": 0.5, "upscale": 1.5, "steps": 3, "upscaler": "Latent",
                    "sampler": "DPM++ 2M", "schedule_type": "Karras", "prompt": "a, b"}}),
        ("Schedule type: Karras, Denoising strength: 0.5, Hires upscale: 2, Hires sampler: Heun, "
         "Hires schedule type: Automatic",
         {"schedule_type": "Karras",
          "hires": {"denoising_strength": 0.5, "upscale": 2, "sampler": "Heun",
                    "schedule_type": "Automatic"}}),
        ("First pass size: 16x16, Denoising strength: 0.7",
         {"width": 16, "height": 16,
          "hires": {"resize_x": 64, "resize_y": 32, "denoising_strength": 0.7}}),
        ("RNG: NV", {"rng": "NV"}),
    ],
)  # fmt: skip
def test_parameters_become_settings(line, expected):
    found, notes = settings(line)
    assert found == expected
    assert not [note for note in notes if "alphas_cumprod" not in note]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("Bogus: 1", "Bogus: 1: not known here"),
        ("Steps: many", "Steps: 'many' is no number"),
        ("Eta: nan", "Eta: 'nan' is no number"),
        ("Sampler: Unheard of", "Sampler: Unheard of is not known here"),
        ("Emphasis: Loud", "Emphasis: Loud is not known here"),
        ("VAE: x", "VAE: x was not searched for.* generated with the model.s own VAE"),
        ("Refiner: x [1234567890]", "Refiner: x \\[1234567890\\]: there is no refiner"),
        ("Hires checkpoint: x, Hires upscale: 2", "Hires checkpoint: x: the second pass"),
        ("Hires steps: 3", "there was no second pass"),
        ("RNG: GPU", "RNG: drawn with a GPU's own noise"),
        ("Face restoration: GFPGAN", "Face restoration: GFPGAN is not available here"),
        ("Denoising strength: 0.5, Init image hash: abc",
         "drawn over a picture that infotext does not hold \\(its hash is abc\\): give settings"),
        ("Sampler: DDIM, Version: v1.5.0", "Pad conds v0"),
        ("TI hashes: \"bad: 0123456789ab\"", "embedding bad: there is no such file with the hash"),
        ("Model: other, Model hash: 0123456789",
         "Model: other \\(hash 0123456789\\) was not searched for.* generated with picto"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_noted(line, note):
    import re

    _, notes = settings(line)
    assert len([reported for reported in notes if re.search(note, reported)]) == 1, notes


def test_face_restoration_at_hand():
    found, notes = settings("Face restoration: GFPGAN", restorers=["GFPGAN"])
    assert (found, notes) == ({"restore_faces": "GFPGAN"}, [])


def test_picture_to_begin_with_must_be_given():
    made = recipe_from_infotext(f"p\n{USUAL}, {REST}, Denoising strength: 0.5, Mask blur: 8")
    with pytest.raises(RecipeError, match=r"settings\.img2img\.init_image: must be given"):
        load_mapping(made.recipe, "a.png", draw_schema)
    given = ["settings.img2img.init_image=a.png", "settings.img2img.inpaint.mask=m.png"]
    picture = load_mapping(made.recipe, "a.png", draw_schema, given).images["picture"]
    assert picture.img2img.init_image == "a.png"
    assert picture.img2img.inpaint.mask_blur == 8


@pytest.mark.parametrize("prompt", ["${a}", "\\${a}", "???", "a: b # c", "yes", "12:30", "[x", ""])
def test_any_prompt_survives(prompt):
    made = recipe_from_infotext(f"{prompt}\nNegative prompt: {prompt}\n{USUAL}, {REST}")
    recipe = load_mapping(made.recipe, "a.png", draw_schema, ["settings.steps=3"])
    picture = recipe.images["picture"]
    assert (picture.prompt, picture.negative_prompt) == (prompt, prompt)
    assert (picture.steps, picture.seed) == (3, 5)


def test_any_infotext_gives_a_recipe_or_its_faults():
    randomness = random.Random(0)
    values = ["1", "0", "-1", "x", "", "nan", "1e999", "8x8", "True", '"a, b"', "9" * 400]
    keys = ["Size", "Seed", "CFG scale", "Hires upscale", "Hires resize", "Denoising strength",
            "Clip skip", "First pass size", "Sampler", "Schedule rho", "Mask blur", "RNG", "Eta",
            "Version", "Emphasis", "Lora hashes", "TI hashes"]  # fmt: skip
    faults = 0
    for _ in range(60):
        chosen = randomness.sample(keys, 5)
        line = ", ".join(f"{key}: {randomness.choice(values)}" for key in chosen)
        made = recipe_from_infotext(f"p <lora:a:b:c> <hypernet:x>\nSteps: 2, {line}")
        try:
            with warnings.catch_warnings(action="ignore"):
                load_mapping(made.recipe, "a.png", draw_schema)
        except RecipeError:
            faults += 1
    assert 0 < faults < 60


def safetensors(path, keys, metadata=None):
    header = {key: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for key in keys}
    header["__metadata__"] = metadata or {}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.name.encode())
    return path


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_models_are_found(tmp_path, tiny_base_folder):
    model = safetensors(tmp_path / "sd" / "one.safetensors", ["model.diffusion_model.x"])
    safetensors(tmp_path / "lora.safetensors", ["lora_unet_x"])
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    old = tmp_path / "old.ckpt"
    old.write_bytes(b"\0" * 0x100000 + b"weights")
    folder = shutil.copytree(tiny_base_folder, tmp_path / "folders" / "tiny")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    hash_, folders = digest(model.read_bytes())[:10], [tmp_path / "folders", tmp_path]
    assert find_model("other name", hash_, folders) == (str(model), "")
    assert find_model("one", None, folders) == (str(model), "")
    assert find_model("x", digest(b"weights")[:8], folders) == (str(old), "")
    assert find_model("x", digest(weights.read_bytes())[:10], folders) == (
        str(folder), ""
    )  # fmt: skip
    assert find_model("picto", None, []) == ("picto", "")
    path, remark = find_model("one", "f" * 10, folders)
    assert path == str(model)
    assert remark == f"one (hash ffffffffff): the one of this name here has the hash {hash_}"
    path, remark = find_model("lora", "f" * 10, [tmp_path])
    assert path is None
    assert remark.startswith(f"lora (hash ffffffffff) is not in {tmp_path}; generated with picto")


def test_artifacts_are_found(tmp_path):
    lora = safetensors(tmp_path / "a" / "ink.safetensors", ["x"], {"ss_output_name": "ink_v2"})
    pickle = tmp_path / "bad.pt"
    pickle.write_bytes(b"embedding")
    hash_ = digest(lora.name.encode())[:12]
    folders = [tmp_path]
    assert find_named("ink", "lora", hash_, folders) == ("ink", "")
    assert find_named("ink", "lora", None, folders) == ("ink", "")
    assert find_named("ink_v2", "lora", hash_, folders) == ("ink_v2", "")
    assert find_named("pen", "lora", hash_, folders) == ("ink", "is called ink here")
    found = digest(b"embedding")[:12]
    assert find_named("bad", "embedding", found, folders) == ("bad", "")
    name, remark = find_named("ink", "lora", "f" * 12, folders)
    assert name == "ink"
    assert "is another file of this name, not the one with the hash ffffffffffff" in remark
    assert find_named("pen", "lora", None, folders)[0] is None


def test_tags_are_called_as_here(tmp_path):
    lora = safetensors(tmp_path / "ink.safetensors", ["x"])
    hash_ = digest(lora.name.encode())[:12]
    text = (
        f"a <lora:pen:0.5:1> cat<lora:gone> <hypernet:gone:1>\n{USUAL}, {REST}, "
        f'Lora hashes: "pen: {hash_}, gone: 0123456789ab"'
    )
    made = recipe_from_infotext(text, [tmp_path])
    assert made.recipe["images"]["picture"]["prompt"] == "a <lora:ink:0.5:1> cat "
    assert made.recipe["artifact_dirs"] == [str(tmp_path)]
    assert made.notes == [
        "<lora:pen:0.5:1>: is called ink here",
        f"<lora:gone>: there is no such file with the hash 0123456789ab in {tmp_path}; the picture "
        "is drawn without",
        f"<hypernet:gone:1>: there is no such file in {tmp_path}; the picture is drawn without",
    ]


def test_pictures_by_name():
    assert is_picture("a/B.PNG") and is_picture(Path("a.webp"))
    assert not is_picture("a.yaml") and not is_picture("png")


def test_picture_that_says_nothing(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"does not say how it was drawn.* none in a a\.txt"):
        recipe_from_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("x")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        recipe_from_picture(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"artifact_dirs: .* is not a folder"):
        recipe_from_infotext("a", [tmp_path / "none"])


def test_missing_picture_is_named(tmp_path, capsys):
    """One line, without the system's words for it."""
    missing = tmp_path / "gone.png"
    assert main([str(missing)]) == 2
    assert capsys.readouterr().err == f"draw: {missing}: no such file\n"


def test_missing_artifact_is_named_with_its_key(tmp_path, capsys):
    path = tmp_path / "images.yaml"
    path.write_text("base_model: {path: picto}\nimages: {a: {prompt: cat}}\n")
    missing = tmp_path / "gone.safetensors"
    assert main([str(path), f"artifacts.cats.path={missing}"]) == 2
    expected = f"draw: artifacts.cats.path: {missing}: no such file or folder\n"
    assert capsys.readouterr().err == expected


def test_given_base_model_is_taken(tmp_path):
    path = tmp_path / "a.jpg"
    save_picture(path, Image.new("RGB", (3, 2)), f"p\n{USUAL}, Model: gone, Clip skip: 2")
    recipe, notes = load_picture(path, ["base_model.path=picto"])
    assert (recipe.base_model.path, recipe.base_model.clip_skip) == ("picto", 2)
    assert not [note for note in notes if note.startswith("Model")]


def test_picture_is_drawn_once_more(tmp_path, tiny_base_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        f'base_model: {{path: "{tiny_base_folder}", clip_skip: 2}}\n'
        "settings: {steps: 2, seed: 5, sampler: Euler a, eta: 0.5, negative_prompt: dog}\n"
        "images: {cat: {prompt: ' a cat'}}\n"
        "file_name: '[sampler]/[seed]'\n"
    )
    assert main(["recipe.yaml"]) == 0
    first = Path("outputs/Euler a/5.png")
    assert capsys.readouterr().out.split("\n")[0] == str(first)
    shutil.copytree(tiny_base_folder, tmp_path / "models" / tiny_base_folder.name)
    folders = "artifact_dirs=[models]"
    assert main([str(first), folders, "file_format=webp", "quality=100"]) == 0
    assert main([str(first), folders, "file_name=again"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["outputs/00000-5.webp", "outputs/again.png"]
    assert err == ""
    again = Path("outputs/again.png")
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(first)))
    assert (
        read_infotext(again) == read_infotext(first) == read_infotext(Path("outputs/00000-5.webp"))
    )
    assert parse_infotext(read_infotext(again) or "").prompt == " a cat"


def test_notes_are_told(tmp_path, capsys):
    save_picture(tmp_path / "a.png", Image.new("RGB", (3, 2)), "p\nSteps: 0, Model: gone")
    assert main([str(tmp_path / "a.png")]) == 2
    assert "settings.steps: must be at least 1, got 0" in capsys.readouterr().err
