# SPDX-License-Identifier: Apache-2.0
"""Each lever lowers the peak of fake CUDA tensors by the bytes that the plan says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from train.config import TrainRecipe
from train.losses import Denoising
from train.memory import CONTEXT, memory_planned, outlined

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif("LIMNER_MOCK_CUDA" not in os.environ, reason="counts with fake tensors"),
]
COMMON = ["mixed_precision=bf16", "gradient_checkpointing=true", "memory.offload=none"]
COMMON += ["sampling.images.one={prompt: 'red, number', seed: 1}"]
LORA = ["objective={type: lora, rank: 4}", *COMMON]
WHOLE = ["objective={type: text_to_image}", "ema={decay: 0.9}", "max_grad_norm=null", *COMMON]
UNCHECKPOINTED = [*LORA, "gradient_checkpointing=false"]
LEVERS = {
    "fp8": (LORA, ["base_model.quantization=fp8"]),
    "int8": (LORA, ["base_model.quantization=int8"]),
    "nf4": (LORA, ["base_model.quantization=nf4"]),
    "blocks_to_swap": (LORA, ["memory.blocks_to_swap=0.8"]),
    "fp8 blocks_to_swap": (LORA, ["base_model.quantization=fp8", "memory.blocks_to_swap=0.8"]),
    "model_offload": (LORA, ["memory.offload=model_offload"]),
    "activation_offload": (UNCHECKPOINTED, ["memory.activation_offload=true"]),
    "fused_backward": (WHOLE, ["memory.fused_backward=true"]),
    "bf16": (WHOLE, ["memory.trained_weights=bf16"]),
    "kahan": (WHOLE, ["memory.trained_weights=bf16", "memory.rounding=kahan"]),
    "ema_on_cpu": (WHOLE, ["memory.ema_on_cpu=true"]),
    "optimizer_on_cpu": (WHOLE, ["memory.optimizer_on_cpu=true"]),
    "whole model_offload": (WHOLE, ["memory.offload=model_offload"]),
}
COMPUTING = ("denoising", "step", "activations on the host")
"""Phases in which the denoiser computes."""
NEAR = {
    "int8": 0.6,  # the plan leaves out products in int32 and fp16: much beside tiny weights
    "blocks_to_swap": 0.25,  # it takes the two largest blocks to be here at the peak
    "fp8 blocks_to_swap": 0.15,
    "ema_on_cpu": 0.04,  # the batch is still there while the average is updated
    "fused_backward": 0.08,  # it takes the largest gradient to be here at the peak
}
"""Relative difference in these phases, where it is above 2 %."""
COUNTERS = 1024
"""Bytes of AdamW's counters of steps, which the plan leaves out."""


@pytest.fixture
def exact_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count bytes as they are: blocks of 512 would be most of a tiny model's memory."""
    from torch import nn

    from tests.gpu import fake_memory

    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(nn.functional, "silu", nn.functional.silu)
    monkeypatch.setattr(Denoising, "noise", Denoising.noise)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.pin_memory)
    monkeypatch.setattr(fake_memory, "BLOCK", 1)
    monkeypatch.setattr("inference.memory.measuring.BLOCK", 1)
    monkeypatch.setattr("train.memory.steps.known", {})
    monkeypatch.setattr("train.optimization.offload.WORTH_MOVING", 64)


def peaks(recipe: TrainRecipe) -> dict[str, tuple[int, int]]:
    """Return the peak of each phase, by the plan and by fake tensors; activations on the host."""
    from tests.gpu.fake_memory import FakeRun
    from tests.gpu.fake_table import fake_peaks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outline = outlined(recipe)
        plan = memory_planned(recipe, outline)
        run = FakeRun(recipe)
        found = {
            phase: (plan.peak_of(phase) - CONTEXT, peak)
            for phase, peak in fake_peaks(plan, outline, run)
        }
    moved = run.live.host_peak if recipe.memory.activation_offload else 0
    return found | {"activations on the host": (-plan.host_activations, -moved)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVERS)
def test_savings(
    name: str,
    make_recipe: Callable[..., TrainRecipe],
    tiny_base_folder: Path,
    exact_sizes: None,
) -> None:
    common, lever = LEVERS[name]
    base = f"base_model.path={tiny_base_folder}"
    plain = peaks(make_recipe(base, *common))
    with_it = peaks(make_recipe(base, *common, *lever))
    assert plain.keys() == with_it.keys()
    most = 0
    for phase, (planned, fake) in plain.items():
        saved, found = planned - with_it[phase][0], fake - with_it[phase][1]
        near = NEAR.get(name, 0.02) if phase in COMPUTING else 0.0
        assert found == pytest.approx(saved, rel=near, abs=COUNTERS), phase
        most = max(most, found)
    assert (most > 10 * COUNTERS) == (name != "nf4")  # whose tables outweigh tiny layers
