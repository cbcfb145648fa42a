"""The memory that a model needs while it draws pictures, and where its weights lie meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import prod

import torch

from inference.config import ImageConfig, MemoryConfig
from inference.images.requests import second_size
from inference.memory import (
    MemoryNeeds,
    MemoryPlan,
    choose_memory,
    decoding_measured,
    denoising_measured,
    free_memory,
    on_meta,
    swapped_bytes,
    tiled,
    weight_bytes,
)
from inference.models import DiffusionModel, ImageModel
from inference.runtime import DrawWarning, InputError, report

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
    """Measure the needs of a model and the largest of its pictures, without computing a value.

    Args:
        base: the model.
        sizes: widths and heights.
        rows: pictures at once; guidance doubles them. They are decoded one by one.
        blocks_to_swap: as in recipes.
    """
    width, height = max(sizes, key=prod)
    factor = base.vae_scale_factor
    latents = base.vae.config.latent_channels, height // factor, width // factor
    weights = (
        weight_bytes(base.denoiser) - swapped_bytes(base.blocks(), blocks_to_swap),
        sum(map(weight_bytes, base.text_encoders.values())),
        weight_bytes(base.vae),
    )
    with on_meta(*base.parts.values()):
        drawing = denoising_measured(base, (rows, *latents), 2).bytes
        decoding = decoding_measured(base, (1, *latents)).bytes
        with tiled(base.vae, True):
            in_tiles = decoding_measured(base, (1, *latents)).bytes
    return MemoryNeeds(*weights, drawing, decoding, in_tiles)


def sizes_of(requests: Iterable[ImageConfig], base: ImageModel) -> list[tuple[int, int]]:
    """Return the size of each request of `expand`, that of the second pass of Hires. fix if any."""
    found = []
    for one in requests:
        size = None if one.hires is None else second_size(base, one)
        found.append((size.width, size.height) if size else (one.width or 0, one.height or 0))
    return found
