# SPDX-License-Identifier: Apache-2.0
"""What the plan measures on the meta device equals the peak of fake CUDA tensors in each phase."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.gpu.test_first_gpu_run import OBJECTIVES
from train.config import TrainRecipe
from train.losses import Denoising
from train.memory import memory_planned, outlined

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif("LIMNER_MOCK_CUDA" not in os.environ, reason="counts with fake tensors"),
]
PREVIEWS = ["sampling.images.one={prompt: 'red, number', seed: 1}"]
SETTINGS = {
    "plain": [],
    "checkpointing": ["gradient_checkpointing=true"],
    "accumulation": ["gradient_accumulation_steps=2", "gradient_checkpointing=true"],
    "fp32": ["mixed_precision=fp32"],
    "averaged": ["ema={decay: 0.9}"],
}
NAMES = [name for name in OBJECTIVES if name not in ("dreambooth", "autoencoder", "decoder")]
FEW = {("lora", "checkpointing"), ("text_to_image", "plain")}


@pytest.mark.parametrize("is_xl", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(name, one, marks=() if (name, one) in FEW else pytest.mark.slow)
        for name in NAMES
        for one in SETTINGS
    ],
)
def test_each_phase(
    name: str,
    setting: str,
    is_xl: bool,
    make_recipe: Callable[..., TrainRecipe],
    tiny_base_folder: Path,
    tiny_sdxl_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch import nn

    from tests.gpu.fake_memory import FakeRun
    from tests.gpu.fake_table import fake_peaks

    # FakeRun replaces these.
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(nn.functional, "silu", nn.functional.silu)
    monkeypatch.setattr(Denoising, "noise", Denoising.noise)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.pin_memory)
    base = tiny_sdxl_folder if is_xl else tiny_base_folder
    options = ["mixed_precision=bf16", *SETTINGS[setting], *PREVIEWS, f"base_model.path={base}"]
    recipe = make_recipe(*OBJECTIVES[name], *options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outline = outlined(recipe)
        plan = memory_planned(recipe, outline)
        run = FakeRun(recipe)
        grown = {phase: peak - run.start for phase, peak in fake_peaks(plan, outline, run)}
    assert grown.keys() == {phase for phase, needs in plan.needs.items() if needs}
    assert {"prompts", "denoising", "decoding", "step"} <= grown.keys()
    needs = plan.needs | {"step": plan.needs["step"] + plan.gradients}
    if plan.needs["step"] == plan.ema:  # and of as many tensors, which are rounded up
        needs["step"] += 2 * sum(-one.nbytes % 512 for one in run.trained)
    for phase, bytes_ in grown.items():  # without weights, which are rounded up here
        assert needs[phase] == pytest.approx(bytes_, rel=0.1), phase
