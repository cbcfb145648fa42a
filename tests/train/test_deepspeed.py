"""Runs divided by DeepSpeed's ZeRO equal those of DDP, and their files are the same."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.train.run_tools import largest_difference, succeed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("deepspeed") is None,
        reason="DeepSpeed is missing: pip install 'limner[deepspeed]'",
    ),
]

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 2}",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "data={flip: 0.5}",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
    "gradient_accumulation_steps=2",
]
LORA = "objective={type: lora, rank: 2, dropout: 0.2}"
TEXT_TO_IMAGE = "objective={type: text_to_image, train_text_encoder: true}"

ROUNDING = 2e-6
"""Of sums in another order, through four steps; the weights are up to 1, the steps 0.01 each."""


@pytest.mark.parametrize("objective", [LORA, TEXT_TO_IMAGE], ids=["lora", "text_to_image"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_zero_equals_ddp(strategy: str, objective: str, commands: Any, tmp_path: Path) -> None:
    options = [f"output_dir={tmp_path}", objective, *OPTIONS]
    succeed(commands.train_on_two(*options, "name=ddp"))
    succeed(commands.train_on_two(*options, f"name={strategy}", f"parallel={strategy}"))
    difference = largest_difference(tmp_path / "ddp", tmp_path / strategy)
    print(f"largest difference: {difference:.1e}")
    assert difference < ROUNDING
