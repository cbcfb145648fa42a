"""Folders whose weights are only those of a variant, as `variant="fp16"` downloads them."""

import shutil
from pathlib import Path

import pytest
import torch

from inference.artifacts.checkpoint import Checkpoint
from inference.config.models import BaseModelConfig
from inference.inspect import inspect
from inference.models.cogvideox.loading import load_video_model
from inference.models.folder import WEIGHTS, unloadable
from inference.models.stable_diffusion.loading import load_base_model
from inference.runtime.errors import BaseModelError

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def renamed(folder: Path, target: Path, variant: str = "fp16") -> Path:
    """Return a copy of a folder in which every weight file is one of a variant."""
    shutil.copytree(folder, target)
    for file in list(target.rglob("*.safetensors")):
        assert file.name in WEIGHT_FILES
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    return target


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("diffusion_pytorch_model.safetensors", None),
        ("model.safetensors", None),
        ("pytorch_model.bin", None),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", None),
        ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("pytorch_model.non_ema.bin", "non_ema"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("model-00001-of-00002.fp16.safetensors", "fp16"),
    ],
)
def test_variants_by_the_names_that_diffusers_and_transformers_write(name, variant):
    match = WEIGHTS.fullmatch(name)
    assert match is not None
    assert match["variant"] == variant


def same_weights(one, two) -> bool:
    return all(
        torch.equal(value, two.parts[part].state_dict()[key])
        for part, module in one.parts.items()
        for key, value in module.state_dict().items()
    )


def test_the_only_variant_is_read(tiny_base_folder, tmp_path):
    folder = renamed(tiny_base_folder, tmp_path / "half")
    plain = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    for config in (BaseModelConfig(str(folder)), BaseModelConfig(str(folder), variant="fp16")):
        assert same_weights(load_base_model(config), plain)
    assert Checkpoint.load(folder).parts.keys() == plain.parts.keys()
    assert inspect(folder)["unet"] == inspect(tiny_base_folder)["unet"]


def test_the_usual_weights_come_first(tiny_base_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "both"))
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    load_base_model(BaseModelConfig(path=str(folder)))
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base_model(BaseModelConfig(path=str(folder), variant="fp16"))


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("o/m does not appear to have a file named scheduler_config.json.", "Check the id"),
        ("Cannot reach the hub", "Check the id"),
        ("o/m does not appear to have a file named model.safetensors.", "base_model.variant=fp16"),
    ],
)
def test_what_the_hub_lacks_is_answered_by_its_remedy(message, remedy):
    error = unloadable(BaseModelConfig("o/m"), False, OSError(message))
    assert str(error).startswith("base_model.path: 'o/m' cannot be loaded: ")
    assert [text for text in ("Check the id", "base_model.variant") if text in str(error)] == [
        remedy.removesuffix("=fp16")
    ]
    assert ".." not in str(error)


def test_one_of_several_variants_is_chosen_by_the_recipe(tiny_base_folder, tmp_path):
    folder = renamed(tiny_base_folder, tmp_path / "several")
    unet = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copyfile(unet, unet.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    message = r"^base_model.variant: .*unet has weights of several .* choose one of fp16, non_ema"
    with pytest.raises(BaseModelError, match=message):
        load_base_model(BaseModelConfig(path=str(folder)))
    load_base_model(BaseModelConfig(path=str(folder), variant="fp16"))


def test_a_video_models_only_variant_is_read(tiny_video_folder, tmp_path):
    folder = renamed(tiny_video_folder, tmp_path / "half")
    plain = load_video_model(BaseModelConfig(path=str(tiny_video_folder)))
    assert same_weights(load_video_model(BaseModelConfig(path=str(folder))), plain)


def test_for_a_model_that_is_not_here_the_variant_is_a_hint():
    config = BaseModelConfig(path="owner/model")
    hint = "name that: base_model.variant=fp16"
    assert hint in str(unloadable(config, False, OSError("no file named model.safetensors")))
    assert hint not in str(unloadable(config, True, OSError("no file")))
    assert hint not in str(unloadable(config, False, ValueError("a config is wrong")))
    named = BaseModelConfig(path="owner/model", variant="fp16")
    assert hint not in str(unloadable(named, False, OSError("no file")))
