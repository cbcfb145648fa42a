"""The choice of what lies on the GPU while a model draws, by free memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from inference.memory.swapping import chosen_blocks, frozen_tensors

GIB = 1024**3
RESERVE = GIB // 2
"""Bytes left free for memory that is not counted."""

Offload = Literal["none", "model_offload", "sequential_offload", "group_offload"]


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes."""

    denoiser: int
    """Weights that are on the device while it computes, without those of swapped blocks."""
    text_encoder: int
    vae: int
    drawing: int
    """The denoiser's evaluation, without its weights."""
    decoding: int
    """The VAE without its weights, the whole image at once."""
    tiled_decoding: int
    """The same in tiles."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where weights lie, and whether the VAE uses tiles."""

    offload: Offload = "none"
    is_tiled: bool = False
    """Whether the VAE works in tiles."""
    reason: str = ""
    """Figures for the user; empty if there was no choice."""
    blocks_to_swap: float = 0
    """Blocks of the denoiser that lie on the host: a number, or a share below 1."""
    tiles_encoding: bool = True
    """Whether tiles hold for encoding too, not only for decoding."""
    is_sliced: bool = False
    """Whether the VAE works on one image of a batch at a time."""

    @property
    def summary(self) -> str:
        """Return the choice without its reason: `model_offload, 12 blocks swapped`."""
        swap = self.blocks_to_swap
        count = "1 block" if swap == 1 else f"{swap:g} blocks"
        swapped = f"{count if swap >= 1 else f'{swap:.0%} of the blocks'} swapped"
        tiles = ["the VAE in tiles"] if self.is_tiled else []
        return ", ".join([self.offload, *([swapped] if swap else []), *tiles])

    @property
    def is_plain(self) -> bool:
        """Return whether all weights are on the device, and the VAE works on all at once."""
        return (
            self.offload == "none"
            and not self.is_tiled
            and not self.blocks_to_swap
            and not self.is_sliced
        )


def choose_memory(needs: MemoryNeeds, free: int | None, wish: str = "auto") -> MemoryPlan:
    """Return the fastest mode that fits into free memory; the most economical one if none does.

    Args:
        needs: of the model and the largest drawing.
        free: free bytes of the GPU before the model is there; None on a CPU, where there is no
            choice.
        wish: `auto`, or a fixed mode; then only tiles are chosen.
    """
    if free is None:
        return MemoryPlan()
    if wish == "group_offload":
        is_tiled = needs.vae + needs.decoding + RESERVE > free
        return MemoryPlan("group_offload", is_tiled, f"{free / GIB:.1f} GiB are free")
    for offload in ("none", "model_offload"):
        for is_tiled in (False, True):
            peak = peak_of(needs, offload, is_tiled) + RESERVE
            if wish in ("auto", offload) and peak <= free:
                return MemoryPlan(offload, is_tiled, in_words(peak, free))
    offload: Any = "sequential_offload" if wish == "auto" else wish
    text = f"{free / GIB:.1f} GiB are free"
    if offload == "sequential_offload":
        text += "; several times slower than with all weights on the GPU"
    return MemoryPlan(offload, True, text)


def in_words(peak: int, free: int) -> str:
    """Return what a mode takes of the free memory."""
    return f"about {peak / GIB:.1f} of {free / GIB:.1f} GiB"


def peak_of(needs: MemoryNeeds, offload: str, is_tiled: bool) -> int:
    """Return the bytes that a mode uses at most."""
    decoding = needs.tiled_decoding if is_tiled else needs.decoding
    if offload == "none":
        weights = needs.denoiser + needs.text_encoder + needs.vae
        return weights + max(needs.drawing, decoding)
    return max(needs.text_encoder, needs.denoiser + needs.drawing, needs.vae + decoding)


def weight_bytes(part: nn.Module) -> int:
    """Return the bytes of a part's weights."""
    return sum(p.numel() * p.element_size() for p in part.parameters())


def swapped_bytes(
    blocks: Sequence[nn.Module],
    wish: float,
    saved: Mapping[nn.Module, int] | None = None,
    here: int = 2,
) -> int:
    """Return the bytes that swapping some of the blocks takes off the device.

    Args:
        blocks: of the denoiser.
        wish: `blocks_to_swap`.
        saved: bytes by which layers will be smaller once they are packed.
        here: blocks that are on the device: while the denoiser computes the one that does, and the
            next one.
    """
    saved = saved or {}
    sizes = sorted(
        sum(tensor.nbytes for tensor in frozen_tensors(block))
        - sum(saved.get(layer, 0) for layer in block.modules())
        for block in chosen_blocks(blocks, wish)
    )
    return sum(sizes[: len(sizes) - here])


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, PyTorch's unused ones included; None for other devices."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
