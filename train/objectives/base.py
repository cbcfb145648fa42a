"""The protocol of an objective: a module that owns exactly what it trains."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from inference.artifacts.base import Artifact
from inference.base_model import BaseModel
from train.batch import Batch


class Objective(nn.Module, ABC):
    """What is trained, and its loss.

    Its named children are the parameter groups (`optimizer.learning_rates` names them), its
    parameters are all that is trained, its state_dict all that a checkpoint needs. The base model
    is a plain attribute, not a child, and stays frozen outside of what the constructor registers.
    """

    def __init__(self, base: BaseModel) -> None:
        super().__init__()
        self.base = base
        self.stops_parts = False
        """Whether something learns for a part of the run only and then gets no gradients."""

    @property
    def changes_prompts(self) -> bool:
        """Whether what is trained changes how captions are understood; they are kept otherwise."""
        trained = dict(self.named_children())
        return "text_encoder" in trained or "embedding" in trained

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The loss of each example, (b,)."""

    @abstractmethod
    def artifact(self) -> Artifact:
        """What has been learned so far; shares its tensors with the objective."""
