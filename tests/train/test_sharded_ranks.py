"""FSDP2 on two CPU ranks: shares of the weights, the result of DDP, and portable checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import free_port
from tests.train.run_tools import contents, largest_difference, succeed

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 2}",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
    "data.captions.dropout_rate=0.3",
]
LORA = "objective={type: lora, rank: 3, dropout: 0.2, train_text_encoder: true}"
EMBEDDING = "objective={type: textual_inversion, token: number, num_vectors_per_token: 1}"
HYPERNETWORK = "objective={type: hypernetwork, dropout_structure: [0, 0.2, 0]}"
COMBINED = (
    "objective={type: combined, members: {word: {objective: {type: textual_inversion, token: "
    "number}, stop_step: 2}, net: {objective: {type: lora, rank: 2}}}}"
)
TEXT_TO_IMAGE = "objective={type: text_to_image, train_text_encoder: true}"
OBJECTIVES = {
    "lora": [LORA, "gradient_accumulation_steps=2"],
    "textual_inversion": [EMBEDDING],
    "hypernetwork": [HYPERNETWORK],
    "combined": [COMBINED],
    "text_to_image": [TEXT_TO_IMAGE, "gradient_checkpointing=true", "max_grad_value=0.01"],
    "bf16": [TEXT_TO_IMAGE, "mixed_precision=bf16"],
}

ROUNDING = 2e-6
"""Of sums in another order, through four steps; the weights are up to 1, the steps 0.01 each."""
BF16_ROUNDING = 2e-2
"""The same where the loss is computed in bf16: a few steps of the other sign."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's artifacts."""
    found = {}
    for file in sorted((run / "artifacts").rglob("*.safetensors")):
        found |= {f"{file.relative_to(run)}/{key}": one for key, one in load_file(file).items()}
    assert found
    return found


def difference(one: Path, two: Path) -> float:
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_result_is_that_of_whole_weights(kind: str, commands: Any, tmp_path: Path) -> None:
    """By artifacts, and previews of all ranks together, which only the first one writes."""
    options = [f"output_dir={tmp_path}", *OPTIONS, *OBJECTIVES[kind], "saving.save_precision=fp32"]
    succeed(commands.train_on_two(*options, "name=whole"))
    sharded = commands.train_on_two(*options, "name=sharded", "parallel=fsdp")
    succeed(sharded)
    assert (sharded[1].out, sharded[1].err) == ("", "")
    found = difference(tmp_path / "whole", tmp_path / "sharded")
    print(f"largest difference: {found:.1e}")
    assert found < (BF16_ROUNDING if kind == "bf16" else ROUNDING)
    assert contents(tmp_path / "whole").keys() == contents(tmp_path / "sharded").keys()
    shards = (tmp_path / "sharded" / "checkpoints" / "step-000004").glob("*.safetensors")
    assert [shard.name for shard in sorted(shards)] == [
        "shard-00001-of-00002.safetensors",
        "shard-00002-of-00002.safetensors",
    ]
