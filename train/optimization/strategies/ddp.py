"""Whole weights in each process: one alone, or several whose gradients DDP sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_
from torch.optim import Optimizer

from inference.files import is_finite
from train.common import Batch, replaced_parameters
from train.objectives import Objective
from train.optimization.strategies.base import Content, Shown, Strategy
from train.optimization.strategies.files import read_content, write_content
from train.runs import CheckpointWriter

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer


class DataParallel(Strategy):
    """Each process has all weights, gradients and the optimizer's state."""

    is_sharded: ClassVar[bool] = False

    model: nn.Module
    """The objective as `Accelerator.prepare` returned it."""

    def shard(self, objective: Objective) -> None:
        """Do nothing: weights stay whole."""

    def prepare(self, objective: Objective, optimizer: Optimizer) -> AcceleratedOptimizer:
        """Wrap both for mixed precision and for several processes.

        With clip skip, and always in SDXL, the last layers of a trained text encoder get no
        gradients, and a member that is done gets none later on; DDP must know.
        """
        from accelerate.utils import DistributedDataParallelKwargs

        skips = objective.trains("text_encoder") and objective.base.skips_last_text_layers
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(
            find_unused_parameters=objective.stops_parts or skips
        )
        self.model, prepared = self.accelerator.prepare(objective, optimizer)
        return cast("AcceleratedOptimizer", prepared)

    @contextmanager
    def accumulating(self, completes_step: bool) -> Iterator[None]:
        self.accelerator.sync_gradients = completes_step
        if completes_step:
            yield
            return
        with self.accelerator.no_sync(self.model):
            yield

    def losses(self, batch: Batch) -> Tensor:
        return self.model(batch)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(
        self, parameters: Sequence[nn.Parameter], limit: float, largest: float | None
    ) -> Tensor:
        norm = self.accelerator.clip_grad_norm_(parameters, limit)
        if largest is not None:
            # Not the accelerator's: a loss scaler refuses to unscale the same gradients twice.
            clip_grad_value_(parameters, largest)
        assert norm is not None
        return norm

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        return all(map(is_finite, tensors))

    def shown(self, objective: Objective, what: Shown) -> AbstractContextManager[None]:
        parameters = dict(objective.named_parameters())

        def values() -> Iterator[Tensor]:
            for (name, one), value in self._pairs(parameters, what):
                yield what.rounded(name, value).to(one.device)

        return self._replaced(objective, parameters, values())

    def whole_on_first(self, objective: Objective, what: Shown) -> AbstractContextManager[None]:
        parameters = dict(objective.named_parameters())
        pairs = self._pairs(parameters, what)
        values = (what.rounded(name, value) for (name, _), value in pairs)
        return self._replaced(objective, parameters, values)

    def write(self, writer: CheckpointWriter, content: Content) -> None:
        write_content(writer, content)

    def read(self, folder: Path, content: Content) -> dict[str, Any]:
        return read_content(folder, content)

    def release(self) -> None:
        """Release the wrapped model.

        DDP must be released before the process group: as its last owner it would wait, holding
        Python's lock, for a thread of the group that may need this lock to end.
        """
        del self.model

    def _pairs(
        self, parameters: dict[str, nn.Parameter], what: Shown
    ) -> Iterator[tuple[tuple[str, nn.Parameter], Tensor]]:
        values = parameters.values() if what.averages is None else what.averages
        yield from zip(parameters.items(), values, strict=True)

    def _replaced(
        self, objective: Objective, parameters: dict[str, nn.Parameter], values: Iterator[Tensor]
    ) -> AbstractContextManager[None]:
        everywhere = [objective, *objective.base.parts.values()]
        return replaced_parameters(everywhere, list(parameters.values()), values)
