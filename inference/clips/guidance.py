"""The guidance scale of each step of a clip.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): constant, a list, or dynamic.
"""

from collections.abc import Sequence
from math import cos, pi
from typing import Literal

from inference.runtime import InputError

DynamicCfg = Literal["off", "diffusers", "cosine"]

EXPONENT = 5.0


def guidance_scales(
    guidance: float | Sequence[float],
    timesteps: Sequence[int],
    dynamic: DynamicCfg = "off",
    key: str = "guidance_scale",
) -> list[float]:
    """Return the guidance scale of each step.

    Args:
        guidance: one scale for all steps, or one per step.
        timesteps: the steps' timesteps, 0 … 999, the noisiest first.
        dynamic: `off`; `diffusers` as `dynamic_by_timestep`; `cosine` as `dynamic_by_step`.
        key: the recipe's option.

    Raises:
        InputError: the list's length differs from the number of steps, or it is dynamic as well.
    """
    steps = len(timesteps)
    if isinstance(guidance, int | float):
        if dynamic == "diffusers":
            return [dynamic_by_timestep(guidance, timestep, steps) for timestep in timesteps]
        if dynamic == "cosine":
            return [dynamic_by_step(guidance, step, steps) for step in range(steps)]
        return [float(guidance)] * steps
    if dynamic != "off":
        raise InputError(
            f"{key}: a list already says each step's scale; dynamic_cfg: {dynamic} needs one "
            "number, or set dynamic_cfg: off"
        )
    if len(guidance) != steps:
        raise InputError(
            f"{key}: {len(guidance)} numbers for {steps} steps; give one per step or one for all"
        )
    return [float(scale) for scale in guidance]


def dynamic_by_timestep(scale: float, timestep: int, steps: int) -> float:
    """Compute the scale as diffusers 0.42.1's `use_dynamic_cfg`: jumps between 1 and 1 + scale.

    The formula is `dynamic_by_step`'s, with the timestep instead of the step's number; so do
    the calls of SAT's samplers. CogVideoX' authors keep it (zai-org/CogVideo issue 267): clips are
    less over-exposed. In video-to-video, `steps` counts those that are taken.
    """
    return _cosine(scale, (steps - timestep) / steps)


def dynamic_by_step(scale: float, step: int, steps: int) -> float:
    """Compute SAT's `DynamicCFG` by the number of the step: from 1 at step 0 up to 1 + scale."""
    return _cosine(scale, step / steps)


def _cosine(scale: float, share: float) -> float:
    return 1 + scale * ((1 - cos(pi * share**EXPONENT)) / 2)
