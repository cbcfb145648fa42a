"""Where the parts of a model lie: those at work on the device, the others on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from inference.memory.choice import MemoryPlan
from inference.memory.swapping import Swapping, chosen_blocks, leaves

HOST = torch.device("cpu")
ENTRIES = ("forward", "encode", "decode")
"""The methods by which parts are put to work; a VAE has the last two."""


class Placement:
    """Moves each part of a model to the device when it is put to work, and others away from it.

    Trained weights always stay on the device. It does not matter who calls a part: its methods
    themselves see to it.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, nn.Module]],
        blocks: Sequence[nn.Module],
        device: torch.device,
        plan: MemoryPlan,
    ) -> None:
        """Move the parts to where they wait.

        Args:
            parts: the model's parts by name, in groups that work together: `text_encoders`,
                `denoiser`, `vae`.
            blocks: those of the denoiser, in the order of computation.
            device: where they work.
            plan: where weights lie.
        """
        self.device = torch.empty(0, device=device).device
        self.plan = plan
        self.parts = {name: part for group in parts.values() for name, part in group.items()}
        self.companions = {name: set(group) for group in parts.values() for name in group}
        self.stays: set[str] = set()
        """Parts that stay on the device while others work."""
        self.here: set[str] = set()
        """Parts that are on the device."""
        self.swappings: list[Swapping] = []
        if plan.blocks_to_swap:
            chosen = chosen_blocks(blocks, plan.blocks_to_swap)
            self.swappings.append(Swapping(chosen, self.device))
        self.leafy: set[str] = set()
        """Parts whose layers come to the device one by one."""
        self._leaves: WeakSet[nn.Module] = WeakSet()
        if plan.offload == "sequential_offload":
            self.leafy = {*parts["text_encoders"], *parts["denoiser"]}
        for name in sorted(self.leafy):
            self._swap_leaves(name)
        if plan.offload == "group_offload":
            for part in parts["denoiser"].values():
                offload_groups(part, self.device)
        grouped = {*parts["denoiser"]} if plan.offload == "group_offload" else set[str]()
        self.fixed = self.leafy | grouped
        """Parts that are never moved as a whole."""
        for name in self.parts:
            if plan.offload == "none":
                self._move(name, self.device)
            else:
                self._move(name, HOST)
        for name, part in self.parts.items():
            self._watch(name, part)
        for part in parts["vae"].values() if plan.is_sliced else ():
            part.enable_slicing()  # type: ignore[operator]

    def _swap_leaves(self, name: str) -> None:
        """Let a part's layers come to the device one by one, those of new adapters too."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        units = [unit for unit in leaves(self.parts[name]) if unit not in self._leaves]
        whole = [unit for unit in units if isinstance(unit, BaseTunerLayer)]
        single = [unit for unit in units if not isinstance(unit, BaseTunerLayer)]
        if single:
            self.swappings.append(Swapping(single, self.device, is_recursive=False))
        if whole:
            self.swappings.append(Swapping(whole, self.device))
        for unit in units:
            self._leaves.add(unit)

    def bring(self, name: str) -> None:
        """Move a part to the device, and those away that do not stay or work together with it."""
        if self.plan.offload == "none" or name in self.here:
            return
        for other in self.here - self.stays - self.companions[name]:
            self._move(other, HOST)
        self._move(name, self.device)

    def settle(self, names: Collection[str]) -> None:
        """Let these parts stay on the device from now on, and move all others away."""
        if self.plan.offload == "none":
            return
        self.stays = set(names) & self.parts.keys()
        for name in sorted(self.here - self.stays):
            self._move(name, HOST)
        for name in sorted(self.stays - self.here):
            self._move(name, self.device)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let each part work alone inside the context; afterwards those that stay are back."""
        before, self.stays = self.stays, set()
        try:
            yield
        finally:
            self.settle(before)

    def release(self) -> None:
        """Let the parts be used as before; they stay where they are."""
        for swapping in reversed(self.swappings):
            swapping.release()
        for part in self.parts.values():
            for entry in ENTRIES:
                vars(part).pop(entry, None)

    def _move(self, name: str, device: torch.device) -> None:
        if device == HOST:
            self.here.discard(name)
        else:
            self.here.add(name)
        if name in self.fixed:
            return
        swapped = [tensor for one in self.swappings for tensor in one.tensors()]
        move(self.parts[name], device, swapped)
        if device == HOST and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _watch(self, name: str, part: nn.Module) -> None:
        """Let a part be brought whenever it is put to work, and the VAE work in tiles."""
        if self.plan.offload == "none" and not self.plan.is_tiled:
            return
        for entry in ENTRIES:
            method = getattr(part, entry, None)
            if method is not None:
                setattr(part, entry, self._at_work(name, entry, method))

    def _at_work(self, name: str, entry: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a part's method that brings the part, and its inputs, to the device first."""
        part = self.parts[name]
        is_tiled = self.plan.is_tiled and hasattr(part, "use_tiling")
        is_tiled = is_tiled and (entry == "decode" or self.plan.tiles_encoding)

        @functools.wraps(method)
        def working(*args: Any, **kwargs: Any) -> Any:
            self.bring(name)
            if name in self.leafy:
                self._swap_leaves(name)
            args = tuple(self._at_hand(one) for one in args)
            kwargs = {key: self._at_hand(one) for key, one in kwargs.items()}
            with tiled(part, is_tiled):
                return method(*args, **kwargs)

        return working

    def _at_hand(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


@torch.no_grad()
def move(part: nn.Module, device: torch.device, but: Collection[Tensor] = ()) -> None:
    """Move the frozen weights of a part, except some.

    Outside inference mode: tensors that are made in it cannot be trained with later.
    """
    kept = {id(tensor) for tensor in but}
    kept |= {id(p.grad) for p in part.parameters() if p.grad is not None}

    def moved(tensor: Tensor) -> Tensor:
        if tensor.requires_grad or tensor.device == device or id(tensor) in kept:
            return tensor
        return tensor.to(device)

    with torch.inference_mode(False):
        part._apply(moved)


def offload_groups(denoiser: nn.Module, device: torch.device) -> None:
    """Let diffusers keep a denoiser's blocks on the host, and copy the next one ahead."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        denoiser,
        onload_device=device,
        offload_device=HOST,
        offload_type="block_level",
        num_blocks_per_group=1,
        non_blocking=True,
        use_stream=True,
    )


def enable_tiles(vae: Any) -> None:
    """Enable the VAE's tiles; those of clips overlap by whole latents.

    diffusers rounds the overlap and the remainder of a tile independently, so that a fraction of a
    latent makes a clip larger. Tiles of the published models have none.
    """
    vae.enable_tiling()
    for side in ("height", "width"):
        size = getattr(vae, f"tile_latent_min_{side}", None)
        if size:
            overlap = f"tile_overlap_factor_{side}"
            setattr(vae, overlap, Fraction(round(size * getattr(vae, overlap)), size))


@contextmanager
def tiled(vae: Any, is_wanted: bool) -> Iterator[None]:
    """Enable the VAE's tiles, if wanted; its switches afterwards are as before."""
    if not is_wanted or vae.use_tiling:
        yield
        return
    enable_tiles(vae)
    try:
        yield
    finally:
        vae.disable_tiling()
