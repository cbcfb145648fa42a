"""The part of a schedule that img2img goes through: by how far a picture shall change.

Source: A1111 1.10.1 `setup_img2img_steps` in `modules/sd_samplers_common.py`, and `sample_img2img`
of `modules/sd_samplers_kdiffusion.py` and `sd_samplers_timesteps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from inference.runtime import InputError
from inference.sampling.levels import NoiseLevels
from inference.sampling.registry import SAMPLERS, is_by_timesteps, scheduled_sigmas
from inference.sampling.schedules import (
    USUAL,
    ScheduleOptions,
    leading_timesteps,
    unipc_grid,
    unipc_levels,
)

if TYPE_CHECKING:
    from torch import Tensor

HIGHEST_STRENGTH = 0.999


@dataclass(frozen=True)
class Img2ImgRun:
    """What a sampler is given in img2img."""

    sigmas: list[float]
    """The falling sigmas that are gone through."""
    noise_sigma: float
    """How much noise the picture's latent is given. In DDIM and its like this is one step more than
    the first of the sigmas, as in A1111."""
    brownian_range: tuple[float, float]
    """(lowest above 0, highest) of the whole schedule, for `NoiseSource`."""
    levels: NoiseLevels
    """Of the model, of the sampler's kind."""

    def start(self, latent: Tensor, noise: Tensor, extra_noise: float = 0.0) -> Tensor:
        """The latent that the sampler begins with.

        Args:
            latent: of the picture, (b, c, h, w).
            noise: standard normal, of the same shape.
            extra_noise: A1111's `Extra noise`, how much more noise there is than is known of.
        """
        squared_scale = self.levels.squared_scale
        scale = sqrt(squared_scale(self.sigmas[0]) / squared_scale(self.noise_sigma))
        return (latent + noise * (self.noise_sigma + extra_noise)) * scale


def img2img_steps(
    steps: int, denoising_strength: float, exact_steps: bool = False
) -> tuple[int, int]:
    """(steps of the whole schedule, A1111's t_enc, which is one less than the steps gone).

    Args:
        steps: asked for, 1 or more.
        denoising_strength: 0 … 1.
        exact_steps: as many steps are gone as were asked for, on a longer schedule; as in the
            second pass of hires fix.

    Raises:
        InputError: the strength is not in 0 … 1, or is 0 where the steps shall be exact.
    """
    if steps < 1:
        raise InputError(f"steps: must be at least 1, got {steps}")
    if not 0 <= denoising_strength <= 1:
        raise InputError(f"denoising_strength: must lie in 0 … 1, got {denoising_strength}")
    strength = min(denoising_strength, HIGHEST_STRENGTH)
    if not exact_steps:
        return steps, int(strength * steps)
    if strength == 0:
        raise InputError("denoising_strength: must be above 0 where the steps shall be exact")
    return int(steps / strength), steps - 1


def img2img_sigmas(
    levels: NoiseLevels,
    sampler: str,
    schedule_type: str,
    steps: int,
    denoising_strength: float,
    exact_steps: bool = False,
    options: ScheduleOptions = USUAL,
) -> Img2ImgRun:
    """The part of the schedule that is gone through: the last t_enc + 1 steps.

    DDIM, DDIM CFG++ and PLMS go the last t_enc - 1 of their own, and UniPC t_enc even ones, both
    from one timestep below that of the noise.

    Args:
        levels: of the model, of the sampler's kind (`Sampler.levels`).
        sampler: its name in `SAMPLERS`.
        schedule_type: `Automatic`, or a name in `SCHEDULES`.
        steps: asked for.
        denoising_strength: 0 … 1; 1 is taken for 0.999.
        exact_steps: see `img2img_steps`.
        options: what A1111's settings change.

    Raises:
        InputError: see `img2img_steps`.
    """
    total, t_enc = img2img_steps(steps, denoising_strength, exact_steps)
    full = scheduled_sigmas(levels, sampler, schedule_type, total, options)
    if is_by_timesteps(sampler, schedule_type):
        return run_by_timesteps(levels, sampler, total, t_enc, options)
    sigmas = full[total - t_enc - 1 :]
    whole_range = min(sigma for sigma in full if sigma > 0), max(full)
    return Img2ImgRun(sigmas, sigmas[0], whole_range, levels)


def run_by_timesteps(
    levels: NoiseLevels, sampler: str, total: int, t_enc: int, options: ScheduleOptions
) -> Img2ImgRun:
    """The run of a sampler with timesteps of its own."""
    timesteps = leading_timesteps(levels, total + options.discard_penultimate)
    t_enc = min(t_enc, len(timesteps) - 1)
    noise_sigma = levels.sigma(timesteps[t_enc])
    known = timesteps[: max(1, t_enc)]
    sigmas = [levels.sigma(timestep) for timestep in reversed(known)]
    if SAMPLERS[sampler].own_schedule is unipc_levels and t_enc:
        sigmas = unipc_grid(levels, (known[-1] + 1) / levels.count, t_enc, options.unipc_skip)
    whole_range = levels.sigma(timesteps[0]), levels.sigma_max
    return Img2ImgRun(sigmas, noise_sigma, whole_range, levels)
