# SPDX-License-Identifier: Apache-2.0
"""Trained weights, average and optimizer wait on the host while pictures are drawn or encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from train.common import on_the_host
from train.config import TrainRecipe
from train.optimization.optimization import state_tensors
from train.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

OPTIONS = [
    "max_train_steps=2",
    "sampling.sample_every_n_steps=1",
    "sampling.images.one={prompt: red, seed: 1, width: 32, height: 32}",
    "sampling.settings.steps=2",
    "stages={first: {steps: 1}, second: {resolution: 48}}",
]
KINDS = {
    "whole": ["objective={type: text_to_image}", "ema={decay: 0.5}"],
    "bf16": [
        "objective={type: text_to_image}",
        "mixed_precision=bf16",
        "memory.trained_weights=bf16",
        "saving.save_precision=bf16",
    ],
    "lora": ["objective={type: lora, rank: 2}", "optimizer.type=adamw8bit"],
}


def results(trainer: Trainer) -> list[bytes]:
    folder = trainer.run.folder
    grids = sorted(folder.samples.glob("*.png"))
    assert len(grids) == 2
    state = folder.checkpoint(2)
    names = ["trained.safetensors", "optimizer.pt"]
    return [path.read_bytes() for path in (*grids, *(state / name for name in names))]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_waits_and_comes_back(
    kind: str, make_recipe: Callable[..., TrainRecipe]
) -> None:
    found: list[list[bytes]] = []
    for offload in ("none", "model_offload"):
        options = [*OPTIONS, *KINDS[kind], f"memory.offload={offload}", f"name={offload}"]
        trainer = Trainer(make_recipe(*options))
        seen: list[tuple[int, int]] = []
        filling: list[tuple[int, int]] = []

        def look(*_: object, trainer: Trainer = trainer, seen: list[tuple[int, int]]) -> None:
            optimization = trainer.optimization
            averages = [] if optimization.ema is None else optimization.ema.shadow_params
            weights = [*optimization.parameters, *averages]
            state = list(state_tensors(optimization.optimizer))
            counts = (sum(t.untyped_storage().nbytes() for t in ts) for ts in (weights, state))
            if trainer.step_number:  # before, the optimizer has no state
                seen.append(tuple(counts))  # type: ignore[arg-type]

        vae = trainer.base.vae
        vae.decoder.register_forward_pre_hook(partial(look, seen=seen))
        vae.encoder.register_forward_pre_hook(partial(look, seen=filling))
        trainer.train()
        assert seen and filling
        for weights, state in filling:
            assert (weights == 0) == (state == 0) == (offload != "none")
        is_shared = kind == "bf16"  # previews use the trained weights themselves
        for weights, state in seen:
            assert (weights == 0) == (offload != "none" and not is_shared)
            assert (state == 0) == (offload != "none")
        found.append(results(trainer))
    assert found[0] == found[1]


def test_tensors_come_back_as_they_were() -> None:
    whole = torch.arange(12.0, device="cuda").reshape(3, 4).t()
    shared, empty = torch.arange(3.0, device="cuda"), torch.zeros(0, device="cuda")
    weight = torch.nn.Parameter(torch.ones(2, 2, device="cuda"))
    ends: list[float] = []
    weight.register_post_accumulate_grad_hook(lambda one: ends.append(float(one.sum())))
    before, strides = whole.cpu(), whole.stride()
    torch.cuda.empty_cache()
    used = torch.cuda.memory_allocated()
    with on_the_host([whole, whole, shared, empty, weight], but=[shared.view(3, 1)]):
        assert [one.numel() for one in (whole, shared, empty, weight)] == [0, 3, 0, 0]
        assert torch.cuda.memory_allocated() < used
    assert torch.equal(whole.cpu(), before) and whole.stride() == strides
    with pytest.raises(KeyError), on_the_host([whole]):
        raise KeyError
    assert torch.equal(whole.cpu(), before)
    (weight * 3).sum().backward()
    assert ends == [4.0]
    assert weight.grad is not None and weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]
