"""Where the parts of the base model lie in each phase of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from inference.models import DiffusionModel
from train.config import TrainRecipe
from train.families import training_of


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
