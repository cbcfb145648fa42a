"""Where the parts of the base model lie in each phase of a run: what is not at work is on the CPU.

The trainer moves the parts by it, and the plan counts them by it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import nn

from inference.models import DiffusionModel
from train.config import TrainRecipe
from train.families.registry import training_of

Phase = Literal["captions", "latents", "prompts", "denoising", "decoding", "step"]
"""Before the first step captions and latents are encoded. Previews encode their prompts, denoise
and decode. The steps are between."""


def parts_at_work(base: DiffusionModel, phase: Phase, idle: Collection[str] = ()) -> list[str]:
    """Return the parts that are on the device in a phase: those that work, and trained ones.

    Args:
        base: the model, after the objective was attached.
        phase: the phase.
        idle: the parts that no step uses (`idle_in_steps`).
    """
    working = {
        "captions": set(base.text_encoders),
        "prompts": set(base.text_encoders),
        "latents": {"vae"},
        "decoding": {"vae"},
        "denoising": {base.denoiser_name},
        "step": set(base.parts) - set(idle),
    }[phase]
    return [name for name, part in base.parts.items() if name in working or is_trained(part)]


def is_trained(part: nn.Module) -> bool:
    """Return whether weights of the part itself are trained, not only LoRA layers in it."""
    return any(one.requires_grad for path, one in part.named_parameters() if ".lora_" not in path)


def idle_in_steps(
    recipe: TrainRecipe, base: DiffusionModel, has_captions: bool, has_latents: bool
) -> list[str]:
    """Return the parts that no step uses.

    Args:
        recipe: the run's.
        base: the model.
        has_captions: whether the embeddings of all captions are cached.
        has_latents: whether the latents of all examples are.
    """
    if not recipe.objective.learns_from_captions or not has_captions:
        return []
    return training_of(base).idle_parts(base, has_latents)
