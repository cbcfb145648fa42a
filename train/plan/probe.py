"""`python -m train.plan RECIPE --probe`: measure real steps on this device, in seconds and bytes.

The trainer itself takes two steps in each stage, with the recipe's weights, images and batch; only
the examples of these steps are encoded in advance. No result is kept.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator

from inference.runtime import InputError
from train.caches import Caches, put_aside
from train.config import TrainRecipe
from train.data import Examples, Paused, Picture, Track, latents_kept
from train.memory import CONTEXT, MemoryPlan
from train.objectives import Objective
from train.run_data import Data
from train.stages import Stage
from train.trainer import Trainer

STEPS = 2
"""Steps of each stage; the first one warms up, the time of the last one counts."""


@dataclass(frozen=True)
class StageProbe:
    """Measurements of a step of a stage."""

    name: str
    seconds: float
    """Duration of an optimizer step, including the loading of its examples."""
    encoding: float
    """Duration of encoding an image or clip before the first step; 0 if none is encoded."""


@dataclass(frozen=True)
class Probe:
    """Measurements."""

    device: str
    stages: list[StageProbe]
    steps: float
    """Seconds of all steps of the run; saves, previews and the filling of caches are additional."""
    filling: float
    """Approximate seconds of encoding all images that are not in the cache yet."""
    peak: int
    """Peak memory during steps: on a GPU what PyTorch allocated, on the CPU the growth of the
    process."""
    estimated: int
    """The plan's estimate of it, without CUDA's own share."""


class StandInData(Data):
    """Takes other pictures in the place of class pictures, which are not drawn for a probe."""

    def __init__(self, recipe: TrainRecipe) -> None:
        super().__init__(recipe)
        if self.class_folders and not self.class_pictures:
            pictures = self.sources.pictures
            self.class_pictures = [Picture(one.path, one.captions) for one in pictures]


class FewCaches(Caches):
    """Encodes the examples of the first steps of a stage, in memory."""

    def __init__(self, recipe: TrainRecipe, objective: Objective, accelerator: Accelerator) -> None:
        super().__init__(recipe, objective, accelerator)
        self.encoding = 0.0
        """Seconds per image."""

    def fill(self, examples: Examples, stage: Stage, track: Track, paused: Paused) -> None:
        """Fill as `Caches.fill`, with the examples of `STEPS` steps."""
        data, self.encoding = self.recipe.data, 0.0
        if not self.recipe.objective.learns_from_captions or data.cache == "off":
            return
        with_classes = examples.class_stream is not None
        batches = stage.micro_batches(stage.first_step, 0, 1, with_classes)
        few = islice(batches, STEPS * stage.recipe.gradient_accumulation_steps)
        positions = [position for batch in few for position in batch]
        if examples.config.caches_latents:
            start = now()
            rows = sorted({examples.row(position) for position in positions})
            examples.latents = self._latents(examples, rows)  # type: ignore[assignment]
            self.encoding = (now() - start) / len(rows)
        states, prompts = self.prompt_states, [examples[p]["prompts"] for p in positions]
        if states and not examples.changes_words and states.fill(sorted({*prompts}), track):
            put_aside(self.recipe, self.base, examples)

    @torch.no_grad()
    def _latents(
        self, examples: Examples, rows: Sequence[int]
    ) -> dict[int, dict[str, torch.Tensor]]:
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for row in rows:
            content, index = examples.content_of_row(row), int(examples.owners[row])
            mean, std = self.base.encode_images(content.pop("pixels")[None])
            sampling = examples.config.latent_sampling
            encoded = latents_kept(mean, std, sampling, examples.seed, [index])
            kept[row] = content | {name: value[0] for name, value in encoded.items()}
        return kept


def probe_run(recipe: TrainRecipe, memory: MemoryPlan, to_encode: int) -> Probe:
    """Take steps on this device, and measure them.

    Args:
        recipe: the run's recipe.
        memory: the plan's estimate, for one process.
        to_encode: images that are not cached.

    Raises:
        InputError: the run could not start, or this is one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "--probe: measures one process; leave WORLD_SIZE out (--processes 2 plans for two)"
        )
    before = start_measuring(torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="limner-probe-") as folder:
        data = recipe.data
        if data.cache == "disk":
            data = replace(data, cache="auto", cache_dir=None)
        options = {"output_dir": folder, "resume": False, "overwrite": False, "data": data}
        peaks = memory.peaks_by_offload
        trainer = Trainer(
            replace(recipe, **options), StandInData, caches=FewCaches, reckon=lambda _: peaks
        )
        try:
            return _probed(trainer, memory, to_encode, before)
        finally:
            trainer.close()


def _probed(trainer: Trainer, memory: MemoryPlan, to_encode: int, before: int) -> Probe:
    caches = trainer.caches
    assert isinstance(caches, FewCaches)
    trainer.objective.train()
    device, stages, peak = trainer.accelerator.device, [], 0
    for stage in trainer.stages:
        trainer.step_number = stage.first_step
        trainer.enter(stage)
        trainer.optimization.stop_members(stage.first_step)
        start_measuring(device)
        seconds = _seconds(trainer, stage)
        peak = max(peak, measured(device, before))
        stages.append(StageProbe(stage.name, seconds, caches.encoding))
    lengths = [stage.last_step - stage.first_step for stage in trainer.stages]
    steps = sum(n * one.seconds for n, one in zip(lengths, stages, strict=True))
    filling = to_encode * max(one.encoding for one in stages)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Probe(name, stages, steps, filling, peak, memory.training - CONTEXT)


def _seconds(trainer: Trainer, stage: Stage) -> float:
    """Return the duration of the last step."""
    seconds, taken, start = 0.0, 0, now()
    for batch in trainer.data.batches(trainer.examples, stage, stage.first_step, trainer.layout):
        trainer.forward_backward(batch)
        if not batch["completes_step"]:
            continue
        taken += 1
        trainer.optimization.step(stage.first_step + taken)
        seconds, start = now() - start, now()
        if taken == STEPS:
            break
    return seconds


def now() -> float:
    """Return the time in seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def start_measuring(device: torch.device) -> int:
    """Start to measure a new peak; return the present memory of this process in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # if the system cannot, the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def measured(device: torch.device, before: int) -> int:
    """Return the peak in bytes: of the device, or the growth of this process since `before`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return max(0, resident("VmHWM") - before)


def resident(key: str) -> int:
    """Return the memory of this process by Linux's names: VmRSS now, VmHWM peak; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)
