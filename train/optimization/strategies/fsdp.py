"""A share of all weights in each process: PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`).

Zhao et al. 2023, arXiv 2304.11277; one route for CPUs and GPUs (decision 20).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from inference.files import is_finite
from train.common import Batch, own_rows, replaced_parameters
from train.config import TrainRecipe
from train.objectives import Objective
from train.optimization.strategies.base import Content, Shown, Strategy
from train.optimization.strategies.sharded_files import as_divided, read_either, write_shards
from train.optimization.strategies.sharding import ShardedModel, Wrapping
from train.runs import CheckpointWriter

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from torch.distributed.device_mesh import DeviceMesh

EPSILON = 1e-6
"""Added to the norm before it divides, as `torch.nn.utils.clip_grad_norm_` does."""


class FullySharded(Strategy):
    """Each process has a share of every weight, gradient and state; a block is whole at work."""

    is_sharded: ClassVar[bool] = True

    model: ShardedModel

    def __init__(self, recipe: TrainRecipe, accelerator: Accelerator, wrapping: Wrapping) -> None:
        super().__init__(recipe, accelerator)
        self.wrapping = wrapping
        device = accelerator.device.type
        self.mesh: DeviceMesh = init_device_mesh(device, (accelerator.num_processes,))

    @property
    def loading_device(self) -> torch.device:
        return torch.device("cpu")

    def waiting_parts(self, objective: Objective) -> Collection[str]:
        base = objective.base
        trained = [name for name, part in base.text_encoders.items() if has_trained(part)]
        return [base.denoiser_name, *trained]

    def shard(self, objective: Objective) -> None:
        self.model = ShardedModel(objective, self.mesh, self.wrapping)
        for name in self.waiting_parts(objective):  # layers without trained weights, and buffers
            moved_whole(objective.base.parts[name], self.accelerator.device)

    def prepare(self, objective: Objective, optimizer: Optimizer) -> AcceleratedOptimizer:
        """Let the accelerator have the optimizer; the objective is sharded already.

        Autocast keeps no copies of weights: they would outlast the weights of their block.
        """
        return cast("AcceleratedOptimizer", self.accelerator.prepare_optimizer(optimizer))

    @contextmanager
    def accumulating(self, completes_step: bool) -> Iterator[None]:
        """Accumulate shares of the gradients; whole ones take the memory that sharding saves."""
        self.accelerator.sync_gradients = completes_step
        yield

    def losses(self, batch: Batch) -> Tensor:
        from accelerate.utils import AutocastKwargs

        with self.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
            return self.model(batch).float()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    @torch.no_grad()
    def clip(
        self, parameters: Sequence[nn.Parameter], limit: float, largest: float | None
    ) -> Tensor:
        for parameter in parameters:
            if not parameter.requires_grad:  # a member that is done, still whole from steps before
                parameter.grad = None
        grads = [own_rows(one.grad) for one in parameters if one.grad is not None]
        total = get_total_norm(grads).to(self.accelerator.device).square()
        dist.all_reduce(total)
        norm = total.sqrt()
        if grads:
            kernels = torch.ops.aten
            factor = (limit / (norm + EPSILON)).clamp(max=1.0).to(grads[0].device)
            kernels._foreach_mul_.Tensor(grads, factor)
            if largest is not None:
                kernels._foreach_clamp_max_.Scalar(grads, largest)
                kernels._foreach_clamp_min_.Scalar(grads, -largest)
        return norm

    def local(self, tensor: Tensor) -> Tensor:
        return own_rows(tensor)

    def whole(self, parameter: Tensor, value: Tensor | None = None) -> Tensor:
        """Return a whole tensor, gathered from all processes on the device.

        Args:
            parameter: a parameter, or something of its shape.
            value: this process's share of another tensor that is divided as the parameter is.
        """
        if not isinstance(parameter, DTensor):
            return parameter if value is None else value
        share = own_rows(parameter) if value is None else value
        divided = as_divided(share.to(parameter.device_mesh.device_type), parameter)
        return cast("DTensor", divided).full_tensor()

    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        ours = all(is_finite(own_rows(tensor)) for tensor in tensors)
        flag = torch.tensor([float(ours)], device=self.accelerator.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag.item())

    @contextmanager
    def shown(self, objective: Objective, what: Shown) -> Iterator[None]:
        parameters = list(objective.parameters())
        with self._exchanged(parameters, what.averages), self.model.at_work(what.rounded):
            yield

    @contextmanager
    def whole_on_first(self, objective: Objective, what: Shown) -> Iterator[None]:
        """Gather one tensor after the other; the first process keeps them on the CPU."""
        named = dict(objective.named_parameters())
        values: Iterable[Tensor] = named.values() if what.averages is None else what.averages
        kept: list[Tensor] = []
        for (name, parameter), value in zip(named.items(), values, strict=True):
            gathered = self.whole(parameter, own_rows(value).detach())
            if self.accelerator.is_main_process:
                kept.append(what.rounded(name, gathered.cpu()))
        if not self.accelerator.is_main_process:
            yield
            return
        everywhere = [objective, *objective.base.parts.values()]
        with replaced_parameters(everywhere, list(named.values()), kept):
            yield

    def write(self, writer: CheckpointWriter, content: Content) -> None:
        write_shards(writer, content)

    def read(self, folder: Path, content: Content) -> dict[str, Any]:
        return read_either(folder, content, self.all_finite)

    def release(self) -> None:
        """Release the sharded model."""
        del self.model

    @contextmanager
    @torch.no_grad()
    def _exchanged(
        self, parameters: Sequence[nn.Parameter], averages: Sequence[Tensor] | None
    ) -> Iterator[None]:
        """Let the shares of parameters and of averages change places inside the context."""
        shares = [] if averages is None else [own_rows(one) for one in parameters]
        pairs = list(zip(shares, averages or (), strict=True))
        for share, average in pairs:
            exchange(share, average)
        try:
            yield
        finally:
            for share, average in pairs:
                exchange(share, average)


@torch.no_grad()
def exchange(one: Tensor, two: Tensor) -> None:
    """Exchange the values of two tensors of the same shape and dtype, on any devices."""
    kept = one.clone()
    one.copy_(two)
    two.copy_(kept)


def has_trained(part: nn.Module) -> bool:
    """Return whether a part, or what is attached to it, is trained."""
    return any(one.requires_grad for one in part.parameters())


def moved_whole(part: nn.Module, device: torch.device) -> None:
    """Move the weights and buffers of a part that are not divided."""
    for module in part.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)
