"""Where the parts of the base model lie in each phase of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import cast

import torch

from inference.clips import expand, whole_decoding
from inference.memory import (
    GIB,
    RESERVE,
    MemoryPlan,
    Offload,
    enable_tiles,
    free_memory,
    in_words,
    weight_bytes,
)
from inference.models import ClipModel, DiffusionModel
from inference.recipe import RecipeWarning
from train.config import TrainRecipe
from train.families import training_of

Reckon = Callable[[TrainRecipe], Mapping[str, int]]
"""The peaks of a run on its device by the plan, in bytes, with `none` and with `model_offload`."""

STATE_BYTES = 16
"""Bytes of a trained number: the weight, its gradient and AdamW's two moments, in fp32."""


def idle_parts(
    recipe: TrainRecipe, base: DiffusionModel, has_prompts: bool, has_latents: bool
) -> list[str]:
    """Return the parts that a step does not use.

    Args:
        recipe: the run's.
        base: the model.
        has_prompts: whether the embeddings of all captions are cached.
        has_latents: whether latents are cached.
    """
    if not recipe.objective.learns_from_captions:
        return [name for name in base.parts if name != "vae"]
    idle = training_of(base).idle_parts(base, has_latents)
    return [name for name in idle if has_prompts or name not in base.text_encoders]


def parts_by_phase(
    base: DiffusionModel, offload: str, idle: Collection[str], trained: Collection[str] = ()
) -> Mapping[str, frozenset[str]]:
    """Return the parts that are on the device together in each phase of a run.

    Args:
        base: the model.
        offload: `none` or `model_offload`.
        idle: the parts that a step does not use, from `idle_parts`.
        trained: parts that are trained as a whole, which always stay.

    Returns:
        Of the phases `captions` and `latents`, in which caches are filled, `step`, and `prompts`,
        `denoising` and `decoding` of previews.
    """
    everything, always = frozenset(base.parts), frozenset(trained)
    encoders, denoiser = frozenset(base.text_encoders), frozenset([base.denoiser_name])
    by_phase = {
        "captions": encoders,
        "latents": frozenset(["vae"]),
        "step": everything - frozenset(idle),
        "prompts": encoders,
        "denoising": denoiser,
        "decoding": frozenset(["vae"]),
    }
    if offload == "none":
        return dict.fromkeys(by_phase, everything)
    return {phase: parts | always for phase, parts in by_phase.items()}


def place_parts(
    recipe: TrainRecipe,
    base: DiffusionModel,
    device: torch.device,
    trained: int,
    reckon: Reckon | None = None,
    waiting: Collection[str] = (),
) -> MemoryPlan:
    """Move the base model, which was read on the CPU, to where its parts lie in the run.

    Args:
        recipe: the run's.
        base: the model, with what is trained attached.
        device: of the run.
        trained: numbers that are trained.
        reckon: computes the peak of the run, for `memory.offload: auto`; without it parts that are
            not at work wait on the CPU.
        waiting: parts that are not moved, since they are divided between processes later.

    Returns:
        The choice; without a reason if there was none.

    Raises:
        InputError: the denoiser has fewer blocks than are to be swapped.
    """
    if recipe.vae_tiling:
        enable_tiles(base.vae)
    memory, free = recipe.memory, free_memory(device)
    plan = MemoryPlan(is_sliced=memory.vae_slicing, tiles_encoding=False)
    if free is None:
        if (idle := memory.idle_on(device.type)) is not None:
            warnings.warn(idle, RecipeWarning, stacklevel=2)
    else:
        needs = decoding_in_previews(recipe, base) + weight_bytes(base.vae)
        is_short = needs + STATE_BYTES * trained + RESERVE > free
        offload, reason = chosen(recipe, free, reckon)
        plan = replace(
            plan,
            offload=offload,
            reason=reason,
            blocks_to_swap=memory.blocks_to_swap if recipe.objective.learns_from_captions else 0,
            is_tiled=is_short and recipe.vae_tiling is None,
        )
    base.place(device, plan, waiting)
    return plan


def chosen(recipe: TrainRecipe, free: int, reckon: Reckon | None) -> tuple[Offload, str]:
    """Return where weights lie on a GPU, and the figures."""
    wish = recipe.memory.offload
    if wish == "auto" and reckon is not None:
        peaks = reckon(recipe)
        fitting: Offload = "none" if peaks["none"] + RESERVE <= free else "model_offload"
        return fitting, in_words(peaks[fitting], free)
    figures = f"{free / GIB:.1f} GiB are free"
    return ("model_offload" if wish == "auto" else wish), figures


def decoding_in_previews(recipe: TrainRecipe, base: DiffusionModel) -> int:
    """Return the bytes of decoding the largest preview clip whole; 0 without clips."""
    clips = [clip for clip in recipe.sampling.clips.values() if clip is not None]
    if training_of(base).examples != "clips" or not clips:
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the previews give them
        return whole_decoding(cast("ClipModel", base), expand(cast("ClipModel", base), clips))
