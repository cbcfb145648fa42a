# SPDX-License-Identifier: Apache-2.0
"""Two processes on two mock devices: compressed gradients, and previews that both draw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import free_port

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "objective={type: lora, rank: 2}",
    "mixed_precision=bf16",
    "max_train_steps=1",
    "max_grad_norm=null",
    "optimizer={type: 'torch.optim:SGD', learning_rate: 1.0}",
    "sampling.images.red={prompt: red, count: 3}",
    "sampling.batch_size=1",
]


def train_on_two(recipe: Path, *overrides: str) -> None:
    """Train on two mock devices, in two processes that gather by the mock of NCCL."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"MOCK_CUDA_DEVICES": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.gpu.run", "train", str(recipe), *overrides]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]


def gradients(run: Path) -> torch.Tensor:
    """Those of the layers that begin as zeros, after a step of plain descent at a rate of 1."""
    weights = load_file(run / "checkpoints" / "step-000001" / "trained.safetensors")
    return -torch.cat([value.flatten() for name, value in weights.items() if "lora_B" in name])


@pytest.mark.slow
def test_gradients_are_rounded_sums_and_previews_those_of_one(
    recipe_file: Path, tmp_path: Path
) -> None:
    for name in ("none", "bf16"):
        compression = f"parallel.gradient_compression={name}"
        train_on_two(recipe_file, f"output_dir={tmp_path}", f"name={name}", *OPTIONS, compression)
    exact, rounded = (gradients(tmp_path / name) for name in ("none", "bf16"))
    assert exact.abs().max() > 0
    assert not torch.equal(exact, exact.bfloat16().float())
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()
    rows = [tmp_path / name / "samples" / "base" for name in ("none", "bf16")]
    assert len([*rows[0].iterdir()]) == 3
    for one, other in zip(sorted(rows[0].iterdir()), sorted(rows[1].iterdir()), strict=True):
        assert one.read_bytes() == other.read_bytes()
