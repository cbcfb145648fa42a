"""The protocol of a strategy of parallelism: whole weights in each process, or shares of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from train.common import Batch
from train.config import TrainRecipe
from train.objectives import Objective
from train.runs import CheckpointWriter

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


@dataclass(frozen=True)
class Content:
    """The tensors of a checkpoint, and what else changes from step to step."""

    objective: Objective
    optimizer: Optimizer
    """As `Strategy.prepare` returned it."""
    averages: Sequence[Tensor] | None
    """Of the EMA: what `Strategy.local` returns of each parameter, averaged; None without EMA."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """What `optimizer.pt` has besides the optimizer's state: plain numbers, equal everywhere."""


@dataclass(frozen=True)
class Shown:
    """The weights that the objective has for a while, in place of those in training."""

    averages: Sequence[Tensor] | None
    """As in `Content`; None for the trained weights themselves."""
    rounded: Callable[[str, Tensor], Tensor]
    """Returns a whole weight, given its name in the objective and its value, as it is shown."""


class Strategy(ABC):
    """How the processes of a run hold the weights and take a step together.

    In the order of a run: `shard`, the optimizer is built, `prepare`; then for each micro-batch
    `accumulating`, `losses`, `backward`; for each step `clip` and the optimizer's step; `release`.
    """

    is_sharded: ClassVar[bool]
    """Whether a process holds a share of the weights alone. Then all processes compute every
    forward pass together, and take part in `whole_on_first`, `shown`, `write` and `read`;
    otherwise each does so alone."""

    def __init__(self, recipe: TrainRecipe, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.accelerator = accelerator

    @abstractmethod
    def shard(self, objective: Objective) -> None:
        """Divide the weights of the objective and of its base model, before an optimizer has them.

        Raises:
            InputError: they cannot be divided.
        """

    @abstractmethod
    def prepare(self, objective: Objective, optimizer: Optimizer) -> AcceleratedOptimizer:
        """Wrap the objective for mixed precision and several processes; return the optimizer.

        With what the loop uses of it: `step`, `step_was_skipped`, `zero_grad`, `param_groups`,
        `state_dict` and `load_state_dict`.
        """

    @abstractmethod
    def accumulating(self, completes_step: bool) -> AbstractContextManager[None]:
        """Accumulate gradients inside the context; only a step's last one syncs the processes."""

    @abstractmethod
    def losses(self, batch: Batch) -> Tensor:
        """Return the losses (b,) of a micro-batch by the wrapped objective."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss, ()."""

    @abstractmethod
    def clip(
        self, parameters: Sequence[nn.Parameter], limit: float, largest: float | None
    ) -> Tensor:
        """Clip the gradients by norm, then by value; return the norm of all before, plain, ().

        Args:
            parameters: of the objective.
            limit: of the norm; infinite for none.
            largest: of a value; None for none.
        """

    @abstractmethod
    def local(self, tensor: Tensor) -> Tensor:
        """Return what this process holds of a parameter, or of its gradient, as a plain tensor.

        It shares memory with the parameter, for as long as the run lasts.
        """

    @abstractmethod
    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether these tensors are finite in all processes.

        Args:
            tensors: parameters, the optimizer's state, averages: the same in all processes.
        """

    @abstractmethod
    def shown(self, objective: Objective, what: Shown) -> AbstractContextManager[None]:
        """Let objective and base model compute with other values inside the context.

        Afterwards the weights in training are back, unchanged.
        """

    @abstractmethod
    def whole_on_first(self, objective: Objective, what: Shown) -> AbstractContextManager[None]:
        """Let the objective have other values, whole, in the first process, to write its artifacts.

        They need not be able to compute, and may lie on the CPU.
        """

    @abstractmethod
    def write(self, writer: CheckpointWriter, content: Content) -> None:
        """Write the tensors of a checkpoint; a writer of each process if `is_sharded`."""

    @abstractmethod
    def read(self, folder: Path, content: Content) -> dict[str, Any]:
        """Restore the tensors of a checkpoint of any strategy; return `Content.others`.

        Raises:
            RunDirectoryError: a tensor in it is not finite, or no plain one.
        """

    @abstractmethod
    def release(self) -> None:
        """Release the wrapped objective; no step can be taken afterwards."""
