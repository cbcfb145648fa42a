"""A checkpoint's files: everything that a run needs to go on as if it had never stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from train.objectives import Objective
from train.optimization.guards import Guard
from train.runs import PROGRESS, CheckpointWriter, HashedFile

BYTES_AROUND = 512
"""More than a file needs for the name and place of a tensor."""

SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TrainingState:
    """What changes from step to step, written to and read from a checkpoint folder."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        ema: EMAModel | None,
        guard: Guard,
    ) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.ema = ema
        self.guard = guard

    def write(self, writer: CheckpointWriter, step: int) -> None:
        """Writes what `read` needs; the step's number too."""
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
        """Whether everything that was learned is, and what the optimizer and the average hold."""
        floats = (one for one in self.tensors() if one.is_floating_point())
        return all(bool(torch.isfinite(one).all()) for one in floats)

    def tensors(self) -> list[Tensor]:
        """Everything of a checkpoint that is large."""
        states = self.optimizer.state_dict()["state"].values()
        kept = [value for state in states for value in state.values()]
        averages = [] if self.ema is None else self.ema.shadow_params
        everything = [*self.objective.state_dict().values(), *kept, *averages]
        return [value for value in everything if isinstance(value, Tensor)]

    def size(self) -> int:
        """Bytes that `write` takes at most, of the optimizer's state as far as there is some."""
        return sum(tensor.nbytes + BYTES_AROUND for tensor in self.tensors()) + 2**16

    def read(self, folder: Path) -> int:
        """Puts the state back; returns the step."""
        progress = json.loads((folder / PROGRESS).read_text())
        known = {name: progress[name] for name in self.guard.counts if name in progress}
        self.guard.counts |= known
        self.objective.load_state_dict(load_file(folder / "trained.safetensors"))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            averages = load_file(folder / "ema.safetensors")
            for i, shadow in enumerate(self.ema.shadow_params):
                shadow.data.copy_(averages[str(i)])
            self.ema.optimization_step = progress["step"]
        return progress["step"]


def write_tensors(tensors: Mapping[str, Tensor], file: HashedFile) -> None:
    """Writes a file of safetensors, of one tensor after the other: none is held twice.

    What is known by two names (T5's embedding) stands there twice.

    Raises:
        OSError: the file cannot be written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        kind = SAFETENSORS_NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            file.write(flat.view(torch.uint8).numpy())
