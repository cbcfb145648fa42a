"""The memory that a model needs while it draws pictures, and where its weights lie meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from inference.config import ImageConfig, MemoryConfig
from inference.images.requests import second_size
from inference.memory import (
    MemoryNeeds,
    MemoryPlan,
    choose_memory,
    free_memory,
    swapped_bytes,
    weight_bytes,
)
from inference.models import DiffusionModel, ImageModel
from inference.runtime import DrawWarning, InputError, report

DENOISER_TENSORS = 24
"""Tensors of the first block's width that exist at once in a UNet, at the size of the latents."""
DECODER_TENSORS = 6
"""Tensors of the VAE's last block, at the size of the picture."""

Needs = Callable[[float], MemoryNeeds]
"""The needs of a model and its drawings, given `memory.blocks_to_swap`."""


@dataclass(frozen=True)
class Levers:
    """What a drawing recipe says of memory."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    vae_tiling: bool | None = None


def place_for_drawing(
    base: DiffusionModel,
    device: torch.device,
    levers: Levers,
    needs: Needs,
    is_first: bool = True,
) -> None:
    """Move a model that was read on the CPU to where its parts lie while it draws.

    Args:
        base: the model.
        device: where it computes.
        levers: of the recipe.
        needs: of the model and what it draws.
        is_first: whether this process prints the choice.

    Raises:
        InputError: too little memory is free for packed weights; or the denoiser has fewer blocks.
    """
    memory, free = levers.memory, free_memory(device)
    swap = memory.blocks_to_swap if free is not None else 0
    plan = MemoryPlan()
    if free is None:
        if (idle := memory.idle_on(device.type)) is not None:
            warnings.warn(idle, DrawWarning, stacklevel=2)
    else:
        plan = choose_memory(needs(swap), free, memory.offload)
        refuse_packed(base, plan)
    if plan.offload == "sequential_offload":
        swap = 0  # it moves all blocks
    is_tiled = plan.is_tiled if levers.vae_tiling is None else levers.vae_tiling
    sliced = memory.vae_slicing
    plan = replace(plan, is_tiled=is_tiled, blocks_to_swap=swap, is_sliced=sliced)
    if plan.reason and is_first:
        report("draw", f"memory: {plan.summary} ({plan.reason})")
    base.place(device, plan)


def refuse_packed(base: DiffusionModel, plan: MemoryPlan) -> None:
    """Raise InputError if packed weights would have to be moved layer by layer."""
    moves = base.source is None or base.source.moves_by_layer
    if plan.offload == "sequential_offload" and not moves:
        raise InputError(
            "memory: auto: too little is free for all but sequential_offload, which cannot move "
            "weights packed by bitsandbytes; take base_model.quantization=fp8, or draw less at "
            "once, or smaller"
        )


def picture_needs(
    base: ImageModel, sizes: Iterable[tuple[int, int]], rows: int, blocks_to_swap: float = 0
) -> MemoryNeeds:
    """Estimate the needs of a model and the largest of its pictures from shapes.

    Args:
        base: the model.
        sizes: widths and heights.
        rows: pictures at once; guidance doubles them.
        blocks_to_swap: as in recipes.
    """
    own = base.resolution, base.resolution
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=own)
    vae: Any = base.vae
    latents = (width // base.vae_scale_factor) * (height // base.vae_scale_factor)
    itemsize = torch.finfo(base.dtype).bits // 8
    drawing = DENOISER_TENSORS * 2 * rows * first_width(base) * latents * itemsize
    tile = getattr(vae, "tile_sample_min_size", None) or max(width, height)
    return MemoryNeeds(
        weight_bytes(base.denoiser) - swapped_bytes(base.blocks(), blocks_to_swap),
        sum(map(weight_bytes, base.text_encoders.values())),
        weight_bytes(vae),
        drawing,
        decoding_bytes(vae, width, height),
        decoding_bytes(vae, min(width, tile), min(height, tile)),
    )


def first_width(base: ImageModel) -> int:
    """Return the channels of a UNet's first block, or the width of another denoiser."""
    channels = getattr(base.denoiser.config, "block_out_channels", None)
    if channels is not None:
        return int(channels[0])
    return max(max(p.shape) for p in list(base.denoiser.parameters())[:1])


def decoding_bytes(vae: Any, width: int, height: int) -> int:
    """Estimate the bytes of decoding one picture."""
    numbers = vae.config.block_out_channels[0] * width * height * DECODER_TENSORS
    return numbers * torch.finfo(vae.dtype).bits // 8


def sizes_of(requests: Iterable[ImageConfig], base: ImageModel) -> list[tuple[int, int]]:
    """Return the size of each request of `expand`, that of the second pass of Hires. fix if any."""
    found = []
    for one in requests:
        size = None if one.hires is None else second_size(base, one)
        found.append((size.width, size.height) if size else (one.width or 0, one.height or 0))
    return found
