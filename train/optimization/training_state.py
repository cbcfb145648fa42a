"""A checkpoint's files: everything that a run needs to resume exactly."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from train.objectives import Objective
from train.optimization.ema import Average
from train.optimization.guards import Guard
from train.optimization.strategies import Content, Strategy
from train.runs import PROGRESS, CheckpointWriter

BYTES_AROUND = 512
"""An upper bound for the name and offset of a tensor in a file."""


class TrainingState:
    """The state that changes from step to step, written to and read from a checkpoint folder."""

    def __init__(
        self,
        strategy: Strategy,
        objective: Objective,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        ema: Average | None,
        guard: Guard,
    ) -> None:
        self.strategy = strategy
        self.objective = objective
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.ema = ema
        self.guard = guard
        self.is_torn = False
        """Whether a step has changed some of the weights only: then nothing may be saved."""

    def write(self, writer: CheckpointWriter, step: int) -> None:
        """Write everything that `read` needs; the step's number too.

        With a sharded strategy all processes call it, each with a writer of its own.
        """
        self.strategy.write(writer, self._content)
        if writer.is_first:
            writer.text(PROGRESS, json.dumps({"step": step} | self.guard.counts))

    def is_finite(self) -> bool:
        """Return whether all trained weights, the optimizer's state and the EMA are finite."""
        return self.strategy.all_finite(self.tensors())

    def is_trained_finite(self) -> bool:
        """Return whether all trained weights and the EMA are finite."""
        averages = [] if self.ema is None else self.ema.shadow_params
        return self.strategy.all_finite([*self.objective.state_dict().values(), *averages])

    def tensors(self) -> list[Tensor]:
        """Return all large tensors of a checkpoint, as this process has them."""
        states = self.optimizer.state_dict()["state"].values()
        kept = [value for state in states for value in state.values()]
        averages = [] if self.ema is None else self.ema.shadow_params
        everything = [*self.objective.state_dict().values(), *kept, *averages]
        return [value for value in everything if isinstance(value, Tensor)]

    def size(self) -> int:
        """Return the bytes that `write` uses at most, with the optimizer's state if present."""
        return sum(tensor.nbytes + BYTES_AROUND for tensor in self.tensors()) + 2**16

    def read(self, folder: Path) -> int:
        """Restore the state; return the step.

        Raises:
            RunDirectoryError: a tensor in it is not finite, or no plain one.
        """
        progress = json.loads((folder / PROGRESS).read_text())
        known = {name: progress[name] for name in self.guard.counts if name in progress}
        self.guard.counts |= known
        others = self.strategy.read(folder, self._content)
        self.lr_scheduler.load_state_dict(others["lr_scheduler"])
        if (scaler := self.strategy.accelerator.scaler) is not None:
            scaler.load_state_dict(others["scaler"])
        if self.ema is not None:
            self.ema.optimization_step = progress["step"]
        return progress["step"]

    @property
    def _content(self) -> Content:
        others: dict[str, Any] = {"lr_scheduler": self.lr_scheduler.state_dict()}
        if (scaler := self.strategy.accelerator.scaler) is not None:
            others["scaler"] = scaler.state_dict()
        averages = None if self.ema is None else self.ema.shadow_params
        return Content(self.objective, self.optimizer, averages, others)
