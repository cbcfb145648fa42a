"""Which parts are on the device in which phase of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference.config.models import BaseModelConfig
from inference.models.stable_diffusion.loading import load_base_model
from inference.recipe import RecipeWarning
from tests.inference.models.cogvideox.models import make_video_model
from train.config import TrainRecipe
from train.placement import chosen, idle_parts, parts_by_phase, place_parts

GIB = 2**30


def test_parts_of_each_phase(
    tiny_sdxl_folder: Path, make_recipe: Callable[..., TrainRecipe]
) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder)))
    recipe = make_recipe("objective={type: lora}")
    encoders, vae, unet = {"text_encoder", "text_encoder_2"}, {"vae"}, {"unet"}
    assert {*idle_parts(recipe, base, True, True)} == encoders | vae
    assert {*idle_parts(recipe, base, True, False)} == encoders
    assert {*idle_parts(recipe, base, False, True)} == vae
    assert idle_parts(recipe, base, False, False) == []
    phases = parts_by_phase(base, "model_offload", idle_parts(recipe, base, True, True))
    assert phases == {
        "captions": encoders,
        "latents": vae,
        "step": unet,
        "prompts": encoders,
        "denoising": unet,
        "decoding": vae,
    }
    whole = parts_by_phase(base, "model_offload", ["vae"], ["unet"])
    assert whole["latents"] == vae | unet
    assert whole["step"] == encoders | unet
    assert {*parts_by_phase(base, "none", ["vae"]).values()} == {frozenset(base.parts)}
    vae_alone = make_recipe("objective={type: autoencoder}")
    assert {*idle_parts(vae_alone, base, False, False)} == encoders | unet


@pytest.mark.parametrize(("kind", "kept"), [("5b", ["vae"]), ("5b_i2v", [])])
def test_first_frames_keep_the_vae(
    kind: str, kept: list[str], make_recipe: Callable[..., TrainRecipe]
) -> None:
    recipe = make_recipe("objective={type: lora}")
    assert idle_parts(recipe, make_video_model(kind), True, True) == ["text_encoder", *kept]


def test_levers_without_effect_cause_one_warning(
    tiny_base_folder: Path, make_recipe: Callable[..., TrainRecipe]
) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    own = "objective={type: lora}", "gradient_checkpointing=true"
    recipe = make_recipe(*own, "memory={offload: none, blocks_to_swap: 0.5}")
    with pytest.warns(RecipeWarning) as caught:
        place_parts(recipe, base, torch.device("cpu"), 0)
    message = "memory: blocks_to_swap has no effect on cpu"
    assert [str(one.message) for one in caught] == [message]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = place_parts(make_recipe(*own), base, torch.device("cpu"), 0)
    assert plan.reason == ""
    assert base.placement is None


@pytest.mark.parametrize(
    ("wish", "free", "expected"),
    [
        ("auto", 40, ("none", "about 39.0 of 40.0 GiB")),
        ("auto", 24, ("model_offload", "about 19.0 of 24.0 GiB")),
        ("auto", 12, ("model_offload", "about 19.0 of 12.0 GiB")),
        ("none", 12, ("none", "12.0 GiB are free")),
    ],
)
def test_the_choice(
    wish: str, free: int, expected: tuple[str, str], make_recipe: Callable[..., TrainRecipe]
) -> None:
    recipe = make_recipe("objective={type: lora}", f"memory={wish}")
    peaks = {"none": 39 * GIB, "model_offload": 19 * GIB}
    assert chosen(recipe, free * GIB, lambda _: peaks) == expected
    assert chosen(recipe, free * GIB, None)[0] == ("model_offload" if wish == "auto" else wish)
