"""Helpers that the benchmarks share: time, a wider model, the trainer against a bare loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inference.config import BaseModelConfig
from inference.models.stable_diffusion import load_base_model
from inference.parallel import Layout
from train.common import Batch
from train.config import TrainRecipe

if TYPE_CHECKING:
    from train.data import Examples
    from train.stages import Stage


def now() -> float:
    """Return the time in seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(runs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each run in each turn, after a first turn that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = now()
            run()
            if turn:
                times[name].append(now() - start)
    return times


def widen(base: str, folder: Path) -> str:
    """Save the base model with a UNet of four times the width; return its folder."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from inference.artifacts import Checkpoint

    model = load_base_model(BaseModelConfig(path=base))
    config = dict(model.unet.config)
    config["block_out_channels"] = [4 * width for width in config["block_out_channels"]]
    model.unet = UNet2DConditionModel.from_config(config)
    Checkpoint.of(model).save(folder, torch.float32, {})
    return str(folder)


def compare_trainer(
    recipe: TrainRecipe,
    turns: int,
    steps: int,
    build: Callable[[TrainRecipe], Callable[[], None]],
) -> tuple[float, float, float]:
    """Return the median seconds per step of trainer and bare loop, and the median of their ratios.

    The first turn warms up, and the last one includes saving: neither counts.

    Args:
        recipe: what is trained.
        turns: number of turns that are measured.
        steps: steps per turn.
        build: builds the bare loop, a function that takes one step.
    """
    from train.run_data import Data
    from train.trainer import Trainer

    times: list[tuple[float, float]] = []

    class TimedData(Data):
        """Data between whose batches the bare loop has its turns."""

        def batches(
            self, examples: Examples, stage: Stage, step: int, layout: Layout
        ) -> Iterator[Batch]:
            start = now()
            for batch in super().batches(examples, stage, step, layout):
                yield batch
                if (batch["step"] + 1) % steps == 0:
                    ours, before = now() - start, now()
                    for _ in range(steps):
                        bare_step()
                    times.append((ours / steps, (now() - before) / steps))
                    start = now()

    trainer, bare_step = Trainer(recipe, TimedData), build(recipe)
    trainer.train()
    times = times[1 : turns + 1]
    ours, bare = zip(*times, strict=True)
    ratios = [one / other for one, other in times]
    return statistics.median(ours), statistics.median(bare), statistics.median(ratios)
