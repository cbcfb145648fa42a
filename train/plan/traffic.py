"""What a step waits for the other processes, at a bandwidth that is given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from inference.runtime import InputError
from train.stages import step_size

if TYPE_CHECKING:
    from train.config import TrainRecipe
    from train.memory import Traffic

BANDWIDTH = "32GB/s"
"""Of PCIe 4.0 with 16 lanes in one direction, as its specification names it: GPUs of one machine
without NVLink. Two machines have what connects them: 10 GbE 1.25 GB/s, InfiniBand HDR 25 GB/s."""

UNITS = {"B/s": 1, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12}
UNITS |= {"Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8}


@dataclass(frozen=True)
class StepTime:
    """How long a step takes, and where that is known from."""

    seconds: float
    source: str
    processes: int = 1
    """Of more than one, the step has waited for the others already."""


@dataclass(frozen=True)
class Waiting:
    """The traffic of a process, and the time that it takes."""

    traffic: Traffic
    bandwidth: float
    """Bytes a second that a process sends."""
    step: StepTime | None = None
    """None if nothing has measured one."""

    @property
    def seconds(self) -> float:
        """Return the time that sending takes."""
        return self.traffic.total / self.bandwidth

    @property
    def share(self) -> float | None:
        """Return the part of a step that waits, if nothing overlaps; None if no step is known."""
        if self.step is None:
            return None
        whole = self.step.seconds + (self.seconds if self.step.processes == 1 else 0.0)
        return min(1.0, self.seconds / whole)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        step = None if self.step is None else vars(self.step)
        return {
            **vars(self.traffic),
            "total": self.traffic.total,
            "bandwidth": self.bandwidth,
            "seconds": self.seconds,
            "step": step,
            "share": self.share,
        }


def bandwidth_in(text: str) -> float:
    """Return the bytes a second of `50GB/s` or `100Gbit/s`.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*(\S+)\s*", text)
    names = {name.lower(): factor for name, factor in UNITS.items()}
    try:
        value = float(found[1]) * names[found[2].lower()] if found else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not value:
        raise InputError(
            f"--bandwidth: expected bytes or bits a second as in 50GB/s or 100Gbit/s, got {text!r}"
        )
    return value


def processes_in(text: str) -> int:
    """Return a number of processes.

    Raises:
        InputError: it is none.
    """
    if not text.isdecimal() or not int(text):
        raise InputError(f"--processes: expected a number of at least 1, got {text!r}")
    return int(text)


def logged_step(recipe: TrainRecipe) -> StepTime | None:
    """Return the usual time of a step in the run's own log; None if it has none of such steps.

    Raises:
        InputError: the run's files are damaged.
    """
    from train.runs import RunDirectory, data_sizes, environment_of, speeds, stored_recipe

    run = RunDirectory(Path(recipe.output_dir) / recipe.name)
    if not (run.logs.is_dir() and run.recipe.is_file() and run.environment.is_file()):
        return None
    values, sizes = stored_recipe(run.recipe), data_sizes(environment_of(run))
    names = ("train_batch_size", "gradient_accumulation_steps", "stages")
    is_alike = all(values.get(name) == getattr(recipe, name) for name in names)
    if not (is_alike and sizes and not recipe.stages and (found := speeds(run))):
        return None
    seconds = step_size(recipe, sizes[-1]) / median(found)
    return StepTime(seconds, f"the log of {run.path}", sizes[-1])
