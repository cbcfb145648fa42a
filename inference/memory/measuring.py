"""The memory that networks take on a GPU, measured on the meta device: no value is computed.

Every operation really runs, forward and backward, on tensors that have a shape and no memory. Each
storage counts from its allocation until Python or autograd frees it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.memory.cuda_arithmetic import CudaArithmetic

BLOCK = 512
"""PyTorch's allocator on CUDA rounds every size up to a multiple of this."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages on the meta device, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        self._kept: list[Any] = []

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out storages that exist already, such as those of weights."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen.add(storage._cdata)
            self._kept.append(storage)

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, if it is new, until it is freed."""
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
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
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.count(one)
            elif isinstance(one, tuple | list):
                for inner in one:
                    self.count(inner)
        return out


@contextmanager
def live_bytes(
    existing: Iterable[Tensor], autocast: torch.dtype | None = None
) -> Iterator[tuple[LiveBytes, CudaArithmetic]]:
    """Count the bytes that are allocated inside the context.

    Args:
        existing: tensors that do not count.
        autocast: the lower precision of autocast; None if it is not used.
    """
    live, arithmetic = LiveBytes(), CudaArithmetic(autocast)
    live.ignore(existing)
    with live, arithmetic:
        yield live, arithmetic


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers."""
    return [one for module in modules for one in (*module.parameters(), *module.buffers())]


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
                for tensors in (inner._parameters, inner._buffers):
                    kept = {name: one for name, one in tensors.items() if one is not None}
                    stack.callback(tensors.update, kept)
                    tensors.update({name: empty(one) for name, one in kept.items()})
        yield
