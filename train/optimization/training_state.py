"""A checkpoint's files: everything that a run needs to resume exactly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from inference.files import framed_header, header_entries, is_finite, sound, tensor_bytes
from inference.runtime import ArtifactError
from train.common import RunDirectoryError
from train.objectives import Objective
from train.optimization.ema import Average
from train.optimization.guards import Guard
from train.runs import PROGRESS, CheckpointWriter, HashedFile

BYTES_AROUND = 512
"""An upper bound for the name and offset of a tensor in a file."""


class TrainingState:
    """The state that changes from step to step, written to and read from a checkpoint folder."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        ema: Average | None,
        guard: Guard,
    ) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.ema = ema
        self.guard = guard
        self.is_torn = False
        """Whether a step has changed some of the weights only: then nothing may be saved."""

    def write(self, writer: CheckpointWriter, step: int) -> None:
        """Write everything that `read` needs; the step's number too."""
        with writer.file("trained.safetensors") as file:
            write_tensors(self.objective.state_dict(), file)
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        with writer.file("optimizer.pt") as file:
            torch.save(state, file)  # pyright: ignore[reportArgumentType]
        if self.ema is not None:
            averages = {str(i): value for i, value in enumerate(self.ema.shadow_params)}
            with writer.file("ema.safetensors") as file:
                write_tensors(averages, file)
        writer.text(PROGRESS, json.dumps({"step": step} | self.guard.counts))

    def is_finite(self) -> bool:
        """Return whether all trained weights, the optimizer's state and the EMA are finite."""
        return all(map(is_finite, self.tensors()))

    def is_trained_finite(self) -> bool:
        """Return whether all trained weights and the EMA are finite."""
        averages = [] if self.ema is None else self.ema.shadow_params
        return all(map(is_finite, [*self.objective.state_dict().values(), *averages]))

    def tensors(self) -> list[Tensor]:
        """Return all large tensors of a checkpoint."""
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
        self.objective.load_state_dict(trained_tensors(folder / "trained.safetensors"))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        check_content(folder / "optimizer.pt", state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            averages = trained_tensors(folder / "ema.safetensors")
            for i, shadow in enumerate(self.ema.shadow_params):
                shadow.data.copy_(averages[str(i)])
            self.ema.optimization_step = progress["step"]
        return progress["step"]


def trained_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's safetensors file.

    Raises:
        RunDirectoryError: one is not finite, or no plain tensor.
    """
    tensors = {}
    for name, tensor in load_file(path).items():
        tensors[name] = checked(path, name, tensor)
        if not is_finite(tensors[name]):
            raise RunDirectoryError(
                f"{path}: {name!r} is not finite (NaN or infinite), so the run cannot continue from"
                " it; delete this checkpoint to continue from the one before"
            )
    return tensors


def check_content(path: Path, content: object, name: object = "") -> None:
    """Check all tensors in the nested content of a pickle.

    Raises:
        RunDirectoryError: one is no plain tensor.
    """
    if isinstance(content, Tensor):
        checked(path, name, content)
    elif isinstance(content, dict):
        for key, value in content.items():
            check_content(path, value, key)
    elif isinstance(content, list | tuple):
        for value in content:
            check_content(path, value, name)


def checked(path: Path, name: object, tensor: Tensor) -> Tensor:
    """Return a tensor as a plain one.

    Raises:
        RunDirectoryError: it has no values, is sparse or of another kind that no run writes.
    """
    try:
        return sound(path, name, tensor)
    except ArtifactError as error:
        raise RunDirectoryError(f"{error}; or delete this checkpoint") from error


def write_tensors(tensors: Mapping[str, Tensor], file: HashedFile) -> None:
    """Write a safetensors file one tensor after the other, so that none is held twice.

    A tensor with two names (T5's embedding) is written twice.

    Raises:
        OSError: the file cannot be written.
    """
    file.write(framed_header(json.dumps(header_entries(tensors), separators=(",", ":"))))
    for data in tensor_bytes(tensors):
        file.write(data)
