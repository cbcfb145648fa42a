"""Clipping with a loss scaler, as with fp16 on a GPU: gradients are unscaled once."""

from collections.abc import Callable

import pytest
import torch

from train.config.recipe import TrainRecipe
from train.objectives.loading import load_objective
from train.optimization.accelerator import build_accelerator
from train.optimization.optimization import Optimization


@pytest.mark.parametrize("norm", ["1000", "null"])
def test_scaled_gradients_are_clipped_by_norm_and_by_value(
    norm: str, make_recipe: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        "objective={type: lora, rank: 2}", f"max_grad_norm={norm}", "max_grad_value=0.5"
    )
    accelerator = build_accelerator(recipe)
    objective = load_objective(recipe, accelerator.device)
    optimization = Optimization(recipe, objective, accelerator, print)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(accelerator, "scaler", scaler)
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    first, *others = optimization.parameters
    assert others
    loss = 3.0 * first.sum() + 0.25 * sum(one.sum() for one in others)
    scaler.scale(loss).backward()
    assert first.grad is not None and first.grad.eq(3072.0).all()

    expected = (9.0 * first.numel() + 0.0625 * sum(one.numel() for one in others)) ** 0.5
    assert float(optimization.clip_gradients()) == pytest.approx(expected, rel=1e-5)
    assert first.grad.eq(0.5).all()
    assert all(one.grad is not None and one.grad.eq(0.25).all() for one in others)
