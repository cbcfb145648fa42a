"""What is trained in a video model, and which recipe options it does not support."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from inference.artifacts.base import load_artifact
from inference.models.base import DTYPES
from inference.models.cogvideox.model import VideoModel
from inference.models.conditions import Conditions
from inference.models.stable_diffusion.model import BaseModel
from inference.recipe.loader import load_recipe
from inference.runtime.errors import InputError
from scripts.bench import check_full_size
from tests.inference.artifacts.video_base import build_video_base, predict
from train.common.batch import Batch
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.objectives.loading import build_objective
from train.objectives.lora import LoraObjective
from train.optimization.accelerator import build_accelerator
from train.optimization.ema import ShownWeights
from train.optimization.strategies.ddp import DataParallel

LORA = {"type": "lora", "rank": 4, "alpha": 2.0}


def recipe(folder: Path, objective: dict[str, Any]) -> TrainRecipe:
    content = {
        "name": "moving",
        "base_model": {"path": "tiny_video"},
        "objective": objective,
        "data": {"path": "clips", "clips": {"frames": 9, "height": 32, "width": 32}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(path, train_schema)


def batch(base: VideoModel) -> Batch:
    generator = torch.Generator().manual_seed(4)
    frames = 4 if base.config.patch_size_t else 3
    return {
        "step": 0,
        "step_size": 2,
        "seed": 0,
        "completes_step": True,
        "first_position": 0,
        "positions": [0, 1],
        "indices": [0, 1],
        "names": ["a", "b"],
        "weight": torch.ones(2),
        "prompts": ["a", "b"],
        "latents": torch.randn(2, frames, 4, 4, 4, generator=generator),
        "prompt_states": Conditions(torch.randn(2, 16, 32, generator=generator)),
    }


@pytest.mark.parametrize("changes", [{}, {"patch_size_t": 2, "patch_bias": False}])
def test_a_trained_lora_predicts_the_same_in_a_fresh_model(changes, tmp_path):
    base = build_video_base(**changes)
    plain = predict(base)
    objective = build_objective(recipe(tmp_path, LORA | {"comfyui_twin": True}), base)
    assert isinstance(objective, LoraObjective)
    assert [name for name, _ in objective.named_children()] == ["transformer"]
    assert objective.trains("transformer") and not objective.changes_prompts
    parameters = [*objective.parameters()]
    assert len(parameters) == 2 * 8
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    losses = []
    for _ in range(8):
        loss = objective(batch(base))
        assert loss.shape == (2,)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.mean().item())
    assert losses[-1] < losses[0]
    assert not any(parameter.requires_grad for parameter in base.vae.parameters())

    objective.artifact().save(tmp_path / "moving.safetensors", torch.float32, {})
    trained = predict(base)
    assert not torch.equal(trained, plain)
    for name in ("moving.safetensors", "moving.comfyui.safetensors"):
        fresh = build_video_base(**changes)
        load_artifact(tmp_path / name).attach(fresh)
        assert torch.equal(predict(fresh), trained), name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_previews_are_drawn_with_the_numbers_of_the_file(precision, tmp_path):
    """Its alpha is the rank; what it scales is rounded once, and so must the previews' be."""
    base = build_video_base()
    made = recipe(tmp_path, LORA | {"alpha": 2.5})
    made = replace(made, saving=replace(made.saving, save_precision=precision))
    objective = build_objective(made, base)
    generator = torch.Generator().manual_seed(1)
    for parameter in objective.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    whole = DataParallel(made, build_accelerator(made))
    weights = ShownWeights(made, objective, objective.members(made).values(), None, whole)
    with weights.averaged():
        objective.artifact().save(tmp_path / "moving.safetensors", DTYPES[precision], {})
    trained = predict(base)
    with weights.as_saved_and_drawn():
        shown = predict(base)
    assert torch.equal(predict(base), trained)
    assert not torch.equal(shown, trained)
    assert torch.allclose(shown, trained, atol=1e-5 if precision == "fp32" else 1e-2)
    fresh = build_video_base()
    load_artifact(tmp_path / "moving.safetensors").attach(fresh)
    assert torch.equal(predict(fresh), shown)


REFUSED = {
    "objective.train_text_encoder: true is not supported": {**LORA, "train_text_encoder": True},
    "objective.targets: the transformer of 'tiny_video' has no layers of the kind convolution": {
        **LORA,
        "targets": ["convolution"],
    },
    "objective.save_as: 'tiny_video' is a video model": {
        "type": "text_to_image",
        "save_as": "safetensors",
    },
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_had_of_a_video_model_is_refused(said, tmp_path):
    with pytest.raises(InputError, match=said):
        build_objective(recipe(tmp_path, REFUSED[said]), build_video_base())


def test_a_twin_is_for_video_models_only(tiny_base: BaseModel, tmp_path):
    with pytest.raises(InputError, match=r"objective.comfyui_twin: goes with video models"):
        build_objective(recipe(tmp_path, LORA | {"comfyui_twin": True}), tiny_base)


def test_a_step_at_the_width_of_cogvideox_2b(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_full_size", "--layers", "1"])
    check_full_size.main()
    said = capsys.readouterr().out
    assert "cogvideox-2b: 0.067 B parameters in bf16, 0.12 M of rank 8" in said
    assert "step 1: loss " in said
