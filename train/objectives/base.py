"""The protocol of an objective: a module that owns exactly what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from inference.artifacts import Artifact
from inference.models import DiffusionModel
from train.common import Batch
from train.losses import Denoising

if TYPE_CHECKING:
    from train.config import TrainRecipe


@dataclass(frozen=True)
class Member:
    """What is learned to one artifact, and the recipe that says how."""

    recipe: TrainRecipe
    objective: Objective
    stop_step: int | None = None
    """Trained for this many steps; without it to the end."""


class Objective(nn.Module, ABC):
    """What is trained, and its loss.

    Its named children are the parameter groups (`optimizer.learning_rates` names them), its
    parameters are all that is trained, its state_dict all that a checkpoint needs. The base model
    is a plain attribute, not a child, and stays frozen outside of what the constructor registers.
    """

    denoising: Denoising
    """The loss, where it is that of denoising."""

    def __init__(self, base: DiffusionModel) -> None:
        super().__init__()
        self.base = base
        self.stops_parts = False
        """Whether something learns for a part of the run only and then gets no gradients."""

    def members(self, recipe: TrainRecipe) -> dict[str, Member]:
        """What is learned to files of its own, by name; a single one has an empty name."""
        return {"": Member(recipe, self)}

    def trains(self, part: str) -> bool:
        """Whether a part (unet, text_encoder, embedding, …) has gradients."""
        return part in dict(self.named_children())

    @property
    def changes_prompts(self) -> bool:
        """Whether what is trained changes how captions are understood; they are kept otherwise."""
        parts = ("text_encoder", "text_encoder_2", "embedding")
        return any(self.trains(part) for part in parts)

    def unused(self) -> Tensor | float:
        """Zero, through which what took no part in the loss has a gradient, as DDP needs it."""
        return 0.0

    def timesteps(self, batch: Batch) -> Tensor | None:
        """The timestep of each example, (b,), on the CPU; None where the loss has none."""
        return self.denoising.timesteps(batch) if "denoising" in vars(self) else None

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The loss of each example, (b,)."""

    def after_step(self) -> None:
        """What is done to the weights after every optimizer step."""

    @abstractmethod
    def artifact(self) -> Artifact:
        """What has been learned so far; shares its tensors with the objective."""
