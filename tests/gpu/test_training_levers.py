# SPDX-License-Identifier: Apache-2.0
"""The levers of `memory` on a CUDA device: state on the host, no waits where none are promised."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train.config import TrainRecipe
from train.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

MakeRecipe = Callable[..., TrainRecipe]

PLAIN = [
    "objective={type: text_to_image, train_text_encoder: true}",
    "max_grad_norm=null",
    "ema={decay: 0.9}",
    "max_train_steps=3",
    "sampling.images.one={prompt: 'red, number', seed: 1}",
    "sampling.sample_every_n_steps=3",
]
BF16 = ["memory.trained_weights=bf16", "mixed_precision=bf16"]
LEVERS = {
    "fused": ["memory.fused_backward=true"],
    "fused 8 bits": ["memory.fused_backward=true", "optimizer.type=adamw8bit"],
    "fused on cpu": ["memory.fused_backward=true", "memory.optimizer_on_cpu=true"],
    "optimizer on cpu": ["memory.optimizer_on_cpu=true"],
    "fp16 on cpu": ["memory.optimizer_on_cpu=true", "mixed_precision=fp16"],
    "8 bits on cpu": ["memory.optimizer_on_cpu=true", "optimizer.type=adamw8bit"],
    "ema on cpu": ["memory.ema_on_cpu=true"],
    "activations": ["memory.activation_offload=true"],
    "checkpointing": ["memory.activation_offload=true", "gradient_checkpointing=true"],
    "bf16": BF16,
    "bf16 kahan fused": [*BF16, "memory.rounding=kahan", "memory.fused_backward=true"],
    "bf16 8 bits fused": [*BF16, "memory.fused_backward=true", "optimizer.type=adamw8bit"],
    "all": [
        *BF16,
        "memory.rounding=nearest",  # draws are those of the device that computes the step
        "memory.fused_backward=true",
        "memory.optimizer_on_cpu=true",
        "memory.ema_on_cpu=true",
        "memory.activation_offload=true",
    ],
}


def train(recipe: TrainRecipe) -> Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(recipe)
        assert trainer.accelerator.device.type == "cuda"
        trainer.train()
    return trainer


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    folder = trainer.run.folder.checkpoint(trainer.step_number)
    files = ("trained.safetensors", "ema.safetensors")
    return {f"{name} {key}": one for name in files for key, one in load_file(folder / name).items()}


@pytest.mark.parametrize("name", LEVERS)
def test_levers(name: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal weights to those of the run without what changes places only; resumed to the same."""
    monkeypatch.setattr("train.optimization.offload.WORTH_MOVING", 64)
    options = [*PLAIN, *LEVERS[name]]
    trainer = train(make_recipe(*options, "name=lever"))
    memory = trainer.recipe.memory
    state = [
        one
        for kept in trainer.optimization.optimizer.state.values()
        for one in kept.values()
        if isinstance(one, torch.Tensor) and one.ndim
    ]
    assert {one.device.type for one in state} == {"cpu" if memory.optimizer_on_cpu else "cuda"}
    ema = trainer.optimization.ema
    assert ema is not None
    kinds = {(one.device.type, one.dtype) for one in ema.shadow_params}
    assert kinds == {("cpu" if memory.ema_on_cpu else "cuda", torch.float32)}
    kept = ("mixed_precision", "memory.trained_weights", "memory.rounding", "optimizer.type")
    plain = train(make_recipe(*PLAIN, *[o for o in LEVERS[name] if o.startswith(kept)], "name=p"))
    ours, theirs = tensors(trainer), tensors(plain)
    assert ours.keys() == theirs.keys()
    # bitsandbytes has other kernels for the CPU.
    apart = 1e-5 if name == "8 bits on cpu" else 0.0
    assert max(float((one - theirs[key]).abs().max()) for key, one in ours.items()) <= apart
    first = train(make_recipe(*options, "name=resumed", "max_train_steps=2"))
    assert first.step_number == 2
    again = train(make_recipe(*options, "name=resumed", "resume=true"))
    assert all(torch.equal(one, ours[key]) for key, one in tensors(again).items())


def begun(recipe: TrainRecipe) -> tuple[Trainer, Iterator[Any]]:
    """A trainer before its first step, and its batches."""
    trainer = Trainer(recipe)
    trainer.until_stopped(trainer.begin)
    trainer.until_stopped(trainer.enter, trainer.stage)
    return trainer, trainer.data.batches(trainer.examples, trainer.stage, 0, trainer.layout)


def test_activations_lie_on_the_host(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the forward pass the device holds less than half of what it holds without."""
    monkeypatch.setattr("train.optimization.offload.WORTH_MOVING", 64)
    allocated = {}
    for key in ("false", "true"):
        options = [*PLAIN, f"memory.activation_offload={key}", f"name={key}"]
        trainer, batches = begun(make_recipe(*options))
        batch = next(batches)
        trainer.caches.add_prompts(batch)
        before = torch.cuda.memory_allocated()
        losses = trainer.optimization.losses(batch)
        allocated[key] = torch.cuda.memory_allocated() - before
        losses.mean().backward()
        trainer.close()
    assert allocated["true"] < 0.5 * allocated["false"]


def test_waits_of_a_step(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused step waits for the loss and for the norm, not once for each of its tensors."""
    if "LIMNER_MOCK_CUDA" not in os.environ:
        pytest.skip("waits are counted on the mock device alone")
    from tests.gpu import mock_cuda

    monkeypatch.setattr("train.optimization.offload.WORTH_MOVING", 64)
    counts = {}
    for name in ("plain", "fused", "activations", "bf16 kahan fused"):
        run = ["mixed_precision=bf16", f"name={name.replace(' ', '_')}"]
        options = [*PLAIN, *LEVERS.get(name, []), *run]
        trainer, batches = begun(make_recipe(*options))
        for _ in range(2):
            batch = next(batches)
            mock_cuda.SYNCS.clear()
            mock_cuda.record_syncs(True)
            trainer.forward_backward(batch)
            trainer.update_weights()
            mock_cuda.record_syncs(False)
            counts[name] = len(mock_cuda.SYNCS)
        trainer.close()
    assert counts["activations"] == counts["plain"]
    assert counts["fused"] <= counts["plain"] + 1
    assert counts["bf16 kahan fused"] <= counts["plain"] + 1
