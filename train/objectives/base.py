"""The protocol of an objective: a module that owns exactly the trained parameters."""

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
    """The training of one artifact, and its recipe."""

    recipe: TrainRecipe
    objective: Objective
    stop_step: int | None = None
    """Trained for this many steps; None to the end."""


class Objective(nn.Module, ABC):
    """What is trained, and its loss.

    Its named children are the parameter groups (`optimizer.learning_rates` names them), its
    parameters are all that is trained, its state_dict all that a checkpoint needs. The base model
    is a plain attribute, not a child, and stays frozen except for what the constructor registers.
    """

    denoising: Denoising
    """The loss, if it is a denoising loss."""

    def __init__(self, base: DiffusionModel) -> None:
        super().__init__()
        self.base = base
        self.stops_parts = False
        """Whether something is trained for a part of the run only and then gets no gradients."""

    def members(self, recipe: TrainRecipe) -> dict[str, Member]:
        """Return the members with artifacts of their own, by name; a single one's is empty."""
        return {"": Member(recipe, self)}

    def trains(self, part: str) -> bool:
        """Return whether a part (unet, text_encoder, embedding, …) has gradients."""
        return part in dict(self.named_children())

    @property
    def changes_prompts(self) -> bool:
        """Return whether training changes prompt embeddings; otherwise they are cached."""
        parts = ("text_encoder", "text_encoder_2", "embedding")
        return any(self.trains(part) for part in parts)

    @property
    def encoders_with_gradients(self) -> dict[str, nn.Module]:
        """Return the text encoders through which gradients flow, by name."""
        encoders = self.base.text_encoders
        learns_words = self.trains("embedding")
        return {name: one for name, one in encoders.items() if learns_words or self.trains(name)}

    def unused(self) -> Tensor | float:
        """Return zero, which gives parameters without part in the loss a gradient, as DDP needs."""
        return 0.0

    def timesteps(self, batch: Batch) -> Tensor | None:
        """Return the timestep of each example, (b,); None if the loss has none."""
        return self.denoising.timesteps(batch) if "denoising" in vars(self) else None

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of each example, (b,)."""

    def after_step(self) -> None:
        """Adjust the weights after every optimizer step."""

    @abstractmethod
    def artifact(self) -> Artifact:
        """Return the artifact in its current state; shares its tensors with the objective."""
