"""Weights that lie on the host, with copies on the device only while their module computes.

As kohya's `blocks_to_swap` and OneTrainer's layer offload do. Here the weights on the host never
change place: copies take their names while a module computes, also when gradient checkpointing
recomputes it in the backward pass. Autograd keeps the copies that it needs, and frees them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inference.runtime import InputError


class Slot(NamedTuple):
    """A place of a module that holds a tensor."""

    store: dict[str, Any]
    """A module's parameters or buffers."""
    name: str
    tensor: Tensor


class Ahead(NamedTuple):
    """Copies that are on their way to the device."""

    number: int
    """The unit's."""
    copies: dict[int, tuple[Tensor, Tensor]]
    """By the original's id: the original and its copy."""
    arrival: Any
    """An event of the stream that copies."""


class Swapping:
    """Frozen weights of some modules on the host, in pinned memory.

    Weights that are trained stay on the device. So does what is already there, such as the layers
    of a LoRA that is trained: only what lies on the host is copied.
    """

    def __init__(
        self, units: Sequence[nn.Module], device: torch.device, is_recursive: bool = True
    ) -> None:
        """Put the weights on the host, and let copies be made for each unit's `forward`.

        Args:
            units: modules in the order in which they compute; the next one is copied while one
                computes.
            device: where they compute.
            is_recursive: whether a unit includes the modules in it.
        """
        self.units = list(units)
        self.device = device
        self.is_recursive = is_recursive
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: Ahead | None = None
        self.last = -1
        """The number of the unit that computed last."""
        for number, unit in enumerate(self.units):
            put_on_host(unit, device, is_recursive)
            unit.forward = self._with_copies(number, unit.forward)

    def release(self) -> None:
        """Let the modules compute as before; the weights stay on the host."""
        for unit in self.units:
            del unit.forward
        self._drop_ahead()

    def tensors(self) -> list[Tensor]:
        """Return the tensors that lie on the host."""
        return [slot.tensor for unit in self.units for slot in self._slots(unit)]

    def _with_copies(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a module's `forward` that computes with copies on the device."""

        @functools.wraps(forward)
        def computing(*args: Any, **kwargs: Any) -> Any:
            slots = self._slots(self.units[number])
            self._fill(number, slots)
            try:
                self._fetch_next(number)
                return forward(*args, **kwargs)
            finally:
                for store, name, tensor in slots:
                    store[name] = tensor

        return computing

    def _slots(self, unit: nn.Module) -> list[Slot]:
        """Return the places of frozen tensors that are not on the device."""
        modules = unit.modules() if self.is_recursive else (unit,)
        return [
            slot
            for module in modules
            for slot in slots_of(module)
            if slot.tensor.device.type != self.device.type and not slot.tensor.requires_grad
        ]

    def _fill(self, number: int, slots: Sequence[Slot]) -> None:
        """Put copies into the places, those that were fetched already first."""
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        if self.ahead is not None:
            if self.ahead.number == number:
                copies = dict(self.ahead.copies)
            self._drop_ahead()
        self._copy(slots, copies)
        for store, name, tensor in slots:
            copy = copies[id(tensor)][1]
            is_weight = isinstance(tensor, nn.Parameter)
            store[name] = nn.Parameter(copy, requires_grad=False) if is_weight else copy

    def _drop_ahead(self) -> None:
        """Let the device wait for the copies on their way, and forget them."""
        if self.ahead is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ahead.arrival)
            self.ahead = None

    @torch.no_grad()
    def _copy(self, slots: Sequence[Slot], copies: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Add a copy of each tensor that has none."""
        with torch.inference_mode(False):
            missing = {id(one.tensor): one.tensor for one in slots if id(one.tensor) not in copies}
            for key, tensor in missing.items():
                copy = torch.empty_like(tensor, device=self.device, requires_grad=False)
                copies[key] = tensor, copy.copy_(tensor.detach(), non_blocking=True)

    def _fetch_next(self, number: int) -> None:
        """Copy the weights of the unit that is expected next, in a stream of its own.

        In the backward pass units come in the opposite order. The memory is that of the stream that
        computes, so it is free when this one has come so far.
        """
        following = number + (1 if number > self.last else -1)
        self.last = number
        if self.stream is None or not 0 <= following < len(self.units):
            return
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.inference_mode(False), torch.no_grad():
            tensors = [slot.tensor for slot in self._slots(self.units[following])]
            empty = {id(t): (t, torch.empty_like(t, device=self.device)) for t in tensors}
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                for key, (tensor, copy) in empty.items():
                    copies[key] = tensor, copy.copy_(tensor.detach(), non_blocking=True)
            self.ahead = Ahead(following, copies, self.stream.record_event())


def slots_of(module: nn.Module) -> Iterator[Slot]:
    """Yield the places of a module's own parameters and buffers."""
    stores: tuple[dict[str, Any], ...] = module._parameters, module._buffers
    for store in stores:
        for name, tensor in store.items():
            if tensor is not None:
                yield Slot(store, name, tensor)


def frozen_tensors(module: nn.Module, is_recursive: bool = True) -> list[Tensor]:
    """Return the parameters and buffers that are not trained, each once."""
    modules = module.modules() if is_recursive else (module,)
    slots = (slot for inner in modules for slot in slots_of(inner))
    return list({id(s.tensor): s.tensor for s in slots if not s.tensor.requires_grad}.values())


def put_on_host(module: nn.Module, device: torch.device, is_recursive: bool = True) -> None:
    """Move the frozen tensors of a module to the host; for a GPU into pinned memory."""
    if device.type != "cuda":
        return
    with torch.inference_mode(False):
        for tensor in frozen_tensors(module, is_recursive):
            own = tensor.data.cpu()
            tensor.data = own if own.is_pinned() else own.pin_memory()


def chosen_blocks(blocks: Sequence[nn.Module], wish: float) -> list[nn.Module]:
    """Return the blocks to swap, evenly spread, so that the others hide the time of copying.

    Args:
        blocks: all, in the order of computation.
        wish: their number; or their share, below 1.

    Raises:
        InputError: there are fewer.
    """
    total = len(blocks)
    count = max(1, round(wish * total)) if 0 < wish < 1 else int(wish)
    if count > total:
        raise InputError(f"memory.blocks_to_swap: got {count}; the denoiser has {total} blocks")
    return [blocks[(number + 1) * total // count - 1] for number in range(count)]


def leaves(part: nn.Module) -> list[nn.Module]:
    """Return the modules of a part that hold tensors of their own, for swapping one by one.

    A layer with adapters from peft counts as one, because adapters read its weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: list[nn.Module] = []
    waiting = [part]
    while waiting:
        module = waiting.pop()
        if isinstance(module, BaseTunerLayer) or any(True for _ in slots_of(module)):
            found.append(module)
        if not isinstance(module, BaseTunerLayer):
            waiting += reversed(list(module.children()))
    return found
