"""Each model finds the training half of its family by name, and plug-ins add theirs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from inference.models.base import DiffusionModel
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import ArtifactError, InputError
from tests.inference.models.cogvideox.models import make_video_model
from train.config.clips import ClipDataConfig
from train.config.objectives import LoraConfig
from train.config.recipe import TrainRecipe
from train.families import TRAINING, register_training, training_of
from train.families.cogvideox.training import CogVideoXTraining
from train.families.stable_diffusion import StableDiffusionTraining
from train.losses.denoising import Denoising
from train.objectives.loading import build_objective, objective_on

ROOT = Path(__file__).parents[3]


class OtherModel:
    """A model of another family, as far as the registry looks at it."""

    family_name = "other"
    path = "some/other"


@pytest.fixture
def other() -> Iterator[DiffusionModel]:
    yield cast(DiffusionModel, OtherModel())
    TRAINING.pop("other", None)


def test_models_find_the_half_of_their_family(tiny_base: BaseModel) -> None:
    assert isinstance(training_of(tiny_base), StableDiffusionTraining)
    assert isinstance(training_of(make_video_model("5b")), CogVideoXTraining)


def test_a_family_without_a_half_is_one_message(other: DiffusionModel) -> None:
    with pytest.raises(InputError, match=r"'some/other' .* 'other', .* stable_diffusion, cogvid"):
        training_of(other)


@pytest.mark.parametrize("is_lazy", [True, False])
def test_a_plug_in_registers_its_half(other: DiffusionModel, is_lazy: bool) -> None:
    half = StableDiffusionTraining()
    target = "train.families.cogvideox:TRAINING"
    register_training("other", target if is_lazy else half)
    found = training_of(other)
    assert isinstance(found, CogVideoXTraining) if is_lazy else found is half


def test_registering_imports_no_torch() -> None:
    code = (
        "import sys; from train.families import register_training; "
        "register_training('other', 'nowhere:TRAINING'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


class HalvedLoss(Denoising):
    """A loss of its own."""


def test_objectives_take_the_loss_of_the_registered_half(
    make_recipe: Callable[..., TrainRecipe], tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(StableDiffusionTraining):
        def loss(self, recipe: TrainRecipe, base: BaseModel) -> Denoising:
            return HalvedLoss(base, recipe.loss, "deterministic", recipe.seed)

    monkeypatch.setitem(TRAINING, "stable_diffusion", Half())
    recipe = make_recipe("objective={type: lora, rank: 2}")
    assert type(build_objective(recipe, tiny_base).denoising) is HalvedLoss


def test_kinds_of_examples_are_checked(
    make_recipe: Callable[..., TrainRecipe], tiny_base: BaseModel
) -> None:
    recipe = make_recipe("objective={type: lora, rank: 2}")
    with pytest.raises(InputError, match=r"data\.clips: must be given"):
        objective_on(recipe, make_video_model("5b"))
    clips = replace(recipe, data=replace(recipe.data, clips=ClipDataConfig()))
    with pytest.raises(InputError, match=r"data\.clips: are for video models"):
        objective_on(clips, tiny_base)


def test_options_of_an_objective_are_checked(
    make_recipe: Callable[..., TrainRecipe], tiny_base: BaseModel
) -> None:
    recipe: Any = make_recipe("objective={type: lora, rank: 2}")
    twin = replace(recipe, objective=LoraConfig(type="lora", rank=2, alpha=2, comfyui_twin=True))
    with pytest.raises(ArtifactError, match="comfyui_twin: goes with video models"):
        build_objective(twin, tiny_base)
    whole: Any = make_recipe("objective={type: text_to_image, save_as: safetensors}")
    with pytest.raises(InputError, match=r"objective\.save_as: .* set it to diffusers"):
        build_objective(whole, make_video_model("5b"))


@pytest.mark.parametrize(
    ("kind", "has_latents", "idle"),
    [
        ("5b", True, ["text_encoder", "vae"]),
        ("5b", False, ["text_encoder"]),
        ("1.5_i2v", True, ["text_encoder"]),
    ],
)
def test_parts_are_idle_that_steps_do_not_use(kind: str, has_latents: bool, idle: list) -> None:
    base = make_video_model(kind)
    assert training_of(base).idle_parts(base, has_latents) == idle


@pytest.mark.parametrize("has_latents", [True, False])
def test_parts_of_pictures_are_idle_too(
    has_latents: bool, tiny_base: BaseModel, tiny_sdxl: BaseModel
) -> None:
    vae = ["vae"] if has_latents else []
    for base, encoders in (
        (tiny_base, ["text_encoder"]),
        (tiny_sdxl, ["text_encoder", "text_encoder_2"]),
    ):
        assert training_of(base).idle_parts(base, has_latents) == [*encoders, *vae]


def test_sizes_are_those_of_the_model(tiny_base: BaseModel) -> None:
    sizes = tiny_base.sizes
    assert (sizes.step, sizes.width, sizes.frames) == (
        tiny_base.size_step,
        tiny_base.resolution,
        None,
    )
    base = make_video_model("1.5_i2v")
    factor, config = base.vae_scale_factor, base.config
    assert (base.sizes.width, base.sizes.height) == (
        config.sample_width * factor,
        config.sample_height * factor,
    )
    assert base.sizes.takes_first_frames and base.sizes.frames is not None
    assert base.sizes.frames.latent_frames(9) == 3
