"""Weights that must stay fp32 do so in training, in previews and in drawing, in every part."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file
from torch import nn

from inference.config.models import BaseModelConfig
from inference.models.base import DTYPES, DiffusionModel, cast_part, weight_dtype
from inference.models.families import load_model
from inference.models.folder import weights_of
from inference.recipe.loader import load_recipe
from tests.inference.artifacts.video_base import build_video_base, save_folder
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.objectives.loading import (
    drawn_dtype,
    load_objective,
    objective_on,
    read_precision,
)


@pytest.fixture(scope="module")
def folders(
    tiny_base_folder: Path, tiny_sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    video = save_folder(build_video_base(), tmp_path_factory.mktemp("kept") / "video")
    return {"sd": tiny_base_folder, "sdxl": tiny_sdxl_folder, "video": video}


def formats(base: DiffusionModel) -> dict[str, torch.dtype]:
    """The format of every weight that is not a LoRA's."""
    return {
        f"{name}.{path}".replace(".base_layer", ""): weight.dtype
        for name, part in base.parts.items()
        for path, weight in part.named_parameters()
        if ".lora_" not in path
    }


def recipe_of(folder: Path, tmp_path: Path, precision: str, objective: str) -> TrainRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nbase_model: {vae_precision: null}\ndata: {path: a}\n")
    clips = ["data.clips={frames: 9, height: 32, width: 32}"] if folder.name == "video" else []
    given = [f"base_model.path={folder}", f"mixed_precision={precision}", f"objective={objective}"]
    return load_recipe(path, train_schema, [*given, *clips])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("model", ["sd", "sdxl", "video"])
def test_training_and_drawing_keep_the_same_weights(
    model: str, precision: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(folders[model], tmp_path, precision, "{type: lora, rank: 2}")
    drawn = formats(load_model(recipe.base_model, precision))
    trained = formats(objective_on(recipe, load_model(recipe.base_model, "fp32")).base)
    assert trained == drawn
    kept = [name for name, dtype in drawn.items() if dtype == torch.float32]
    overflows = model == "sdxl" and precision == "fp16"
    kept = [name for name in kept if not (overflows and name.startswith("vae."))]
    is_t5 = model == "video" and precision == "fp16"
    wanted = [name for name in drawn if ".wo." in name] if is_t5 else []
    assert kept == wanted and (bool(kept) == is_t5)


COMBINED = (
    "{type: combined, members: {look: {objective: {type: lora}}, "
    "net: {objective: {type: hypernetwork}}}}"
)
CASES = [
    ("sd", "{type: hypernetwork}", torch.float32),
    ("sd", "{type: lora, rank: 2, train_text_encoder: true}", torch.float16),
    ("sdxl", COMBINED, torch.float16),
    ("video", "{type: lora, rank: 2}", torch.float32),
]


def computed(base: Any) -> list[torch.Tensor]:
    """What text encoders, VAE and denoiser return."""
    is_clip = base.denoiser_name == "transformer"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *((9,) if is_clip else ()), 16, 16, generator=generator)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = base.encode_prompts(["a dog"])
        latents = base.encode_images(pixels)[0]
        prediction = base.predict(latents.to(base.dtype), torch.tensor([500]), states)
    return [states.states, latents, prediction]


@pytest.mark.parametrize(("model", "objective", "stored"), CASES)
def test_weights_are_read_in_the_format_of_the_run(
    model: str, objective: str, stored: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Half of the memory, for the same bytes as of weights that were read in fp32."""
    folder = shutil.copytree(folders[model], tmp_path / folders[model].name)
    for file in folder.rglob("*.safetensors"):
        weights = {name: value.to(stored) for name, value in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    recipe = recipe_of(folder, tmp_path, "bf16", objective)
    assert read_precision(recipe) == "bf16"
    found = load_objective(recipe, torch.device("cpu")).base
    wanted = objective_on(recipe, load_model(recipe.base_model, "fp32")).base
    assert formats(found) == formats(wanted)
    for name, part in wanted.parts.items():
        own, other = weights_of(part), weights_of(found.parts[name])
        assert own.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in own.items())
    assert all(map(torch.equal, computed(found), computed(wanted)))


@pytest.mark.parametrize(
    "objective",
    ["{type: textual_inversion, token: sks}", "{type: text_to_image}", "{type: autoencoder}"],
)
def test_what_begins_from_values_reads_them_in_fp32(
    objective: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert read_precision(recipe_of(folders["sd"], tmp_path, "bf16", objective)) == "fp32"


def test_previews_of_a_trained_text_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    """They have the format in which a fresh process loads what is saved."""
    whole = "{type: text_to_image, train_text_encoder: true}"
    recipe = recipe_of(folders["video"], tmp_path, "fp16", whole)
    objective = objective_on(recipe, load_model(recipe.base_model, "fp32"))
    drawn = formats(load_model(recipe.base_model, "fp16"))
    found = {
        name: drawn_dtype(recipe, objective.base, name) for name, _ in objective.named_parameters()
    }
    assert found == {name: drawn[name] for name in found}
    assert any(name.startswith("text_encoder") for name in found)


def test_fp16_embeddings_of_a_scaled_text_encoder(folders: dict[str, Path]) -> None:
    """T5's feed-forward outputs reach sums that fp16 does not hold."""
    path = str(folders["video"])
    exact: Any = load_model(BaseModelConfig(path=path), "fp32")
    cast: Any = load_model(BaseModelConfig(path=path), "fp32")
    for model in (exact, cast):
        for name, weight in model.text_encoder.named_parameters():
            weight.data *= 1e6 if ".wo." in name else 1.0
    cast_part(cast.text_encoder, torch.float16)
    cast.dtype = torch.float16
    with torch.no_grad():
        wanted = exact.encode_prompts(["a dog runs"]).states
        found = cast.encode_prompts(["a dog runs"]).states.float()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


class Kept(ModelMixin, ConfigMixin):
    """A part of diffusers that keeps a layer."""

    _keep_in_fp32_modules = ["norm"]  # noqa: RUF012

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.norm_out = nn.LayerNorm(2)
        self.register_buffer("table", torch.zeros(2))


@pytest.mark.parametrize("precision", DTYPES)
def test_parts_of_diffusers_are_cast_as_it_loads_them(precision: str, tmp_path: Path) -> None:
    Kept().save_pretrained(tmp_path)
    loaded: Any = Kept.from_pretrained(tmp_path, torch_dtype=DTYPES[precision])
    part = Kept()
    cast_part(part, DTYPES[precision])
    wanted = {name: one.dtype for name, one in loaded.named_parameters()}
    assert {name: one.dtype for name, one in part.named_parameters()} == wanted
    assert weight_dtype(part, "norm.weight", torch.bfloat16) == torch.float32
    assert weight_dtype(nn.Linear(1, 1), "wo.weight", torch.float16) == torch.float16
