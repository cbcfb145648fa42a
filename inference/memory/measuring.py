"""The memory that networks take on a GPU, measured on the meta device: no value is computed.

Every operation really runs, forward and backward, on tensors that have a shape and no memory. Each
storage counts from its allocation until Python or autograd frees it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.memory.cuda_arithmetic import CudaArithmetic

BLOCK = 512
"""PyTorch's allocator on CUDA rounds every size up to a multiple of this."""


def elementwise(one: Any, other: Any) -> Tensor | None:
    """Return the result of an operation on two tensors that are alike."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_meta):
        return None
    are_alike = one.shape == other.shape and one.stride() == other.stride()
    return torch.empty_like(one) if are_alike and one.dtype == other.dtype else None


def affine(bias: Tensor, one: Tensor, other: Tensor) -> Tensor | None:
    """Return the result of a matrix product with a bias."""
    return one.new_empty(one.shape[0], other.shape[1]) if one.is_meta else None


def layer_norm(
    inputs: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return a layer norm, its means and its deviations; CUDA keeps these in fp32."""
    if not inputs.is_meta:
        return None
    rows = *inputs.shape[: inputs.dim() - len(shape)], *[1] * len(shape)
    mean, deviation = (inputs.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), mean, deviation


def group_norm(
    inputs: Tensor, weight: Tensor | None, bias: Tensor | None, *sizes: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return a group norm, its means and its deviations; sizes are n, c, h x w, groups, eps."""
    if not inputs.is_meta:
        return None
    mean, deviation = (inputs.new_empty(int(sizes[0]), int(sizes[3])) for _ in range(2))
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), mean, deviation


aten = torch.ops.aten
SHORTCUTS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: elementwise,
    aten.sub.Tensor: elementwise,
    aten.mul.Tensor: elementwise,
    aten.div.Tensor: elementwise,
    aten.addmm.default: affine,
    aten.native_layer_norm.default: layer_norm,
    aten.native_group_norm.default: group_norm,
}
"""The most frequent operations, whose own functions on the meta device are slow."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages on the meta device, now and at the peak.

    Tensors that are older than the mode, such as weights, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def _count(self, tensor: Tensor, inputs: tuple[Any, ...]) -> None:
        """Count a tensor's storage until it is freed, if it is new and not that of an input."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen or tensor.device.type != "meta":
            return
        is_older = any(storage_of(one) == key for one in flat(inputs))
        size = 0 if is_older else -(-storage.nbytes() // BLOCK) * BLOCK
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        shortcut = None if kwargs else SHORTCUTS.get(func)
        out = None if shortcut is None else shortcut(*args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        for one in flat((out,)):
            self._count(one, args)
        return out


def flat(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from flat(value)


def storage_of(tensor: Tensor) -> int:
    """Return the address of a tensor's storage."""
    return tensor.untyped_storage()._cdata


@contextmanager
def live_bytes(autocast: torch.dtype | None = None) -> Iterator[tuple[LiveBytes, CudaArithmetic]]:
    """Count the bytes that are allocated on the meta device inside the context.

    Args:
        autocast: the lower precision of autocast; None if it is not used.
    """
    live, arithmetic = LiveBytes(), CudaArithmetic(autocast)
    with live, arithmetic:
        yield live, arithmetic


@contextmanager
def on_meta(*modules: nn.Module) -> Iterator[None]:
    """Replace weights and buffers by tensors on the meta device inside the context.

    The modules get their own back afterwards, wherever those lie.
    """
    replaced: dict[int, Tensor] = {}

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in replaced:
            new = torch.empty_like(tensor, device="meta")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            replaced[id(tensor)] = new
        return replaced[id(tensor)]

    with ExitStack() as stack:
        for module in modules:
            for inner in module.modules():
                places: list[dict[str, Any]] = [inner._parameters, inner._buffers]
                for tensors in places:
                    kept = {name: one for name, one in tensors.items() if one is not None}
                    stack.callback(tensors.update, kept)
                    tensors.update({name: empty(one) for name, one in kept.items()})
        yield
