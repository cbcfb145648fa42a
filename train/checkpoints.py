"""A checkpoint's files: everything that a run needs to go on as if it had never stopped."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

FORMAT = 1


class TrainingState:
    """What changes from step to step, written to and read from a checkpoint folder."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        ema: EMAModel | None,
    ) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.ema = ema

    def write(self, folder: Path, step: int) -> None:
        save_file(unshared(self.objective.state_dict()), folder / "trained.safetensors")
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        torch.save(state, folder / "optimizer.pt")
        if self.ema is not None:
            averages = {str(i): value for i, value in enumerate(self.ema.shadow_params)}
            save_file(averages, folder / "ema.safetensors")
        progress = {"format": FORMAT, "step": step}
        (folder / "progress.json").write_text(json.dumps(progress))

    def read(self, folder: Path) -> int:
        """Puts the state back; returns the step."""
        progress = json.loads((folder / "progress.json").read_text())
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


def unshared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with a copy in the place of one that another name has already (T5's)."""
    seen: set[int] = set()
    told = {}
    for name, value in weights.items():
        value = value.contiguous()
        told[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return told
