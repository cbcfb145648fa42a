"""The part of a schedule that img2img uses, by its denoising strength.

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
    """The inputs of a sampler in img2img."""

    sigmas: list[float]
    """The falling sigmas that are used."""
    noise_sigma: float
    """The sigma of the noise that is added to the image's latent. For DDIM and its like this is one
    step more than
    the first of the sigmas, as in A1111."""
    brownian_range: tuple[float, float]
    """(lowest above 0, highest) of the whole schedule, for `NoiseSource`."""
    levels: NoiseLevels
    """Of the model, of the sampler's kind."""

    def start(self, latent: Tensor, noise: Tensor, extra_noise: float = 0.0) -> Tensor:
        """Return the latent that the sampler starts from.

        Args:
            latent: the image's, (b, c, h, w).
            noise: standard normal, of the same shape.
            extra_noise: A1111's `Extra noise`: additional noise that the schedule does not count.
        """
        squared_scale = self.levels.squared_scale
        scale = sqrt(squared_scale(self.sigmas[0]) / squared_scale(self.noise_sigma))
        return (latent + noise * (self.noise_sigma + extra_noise)) * scale


def img2img_steps(
    steps: int, denoising_strength: float, exact_steps: bool = False
) -> tuple[int, int]:
    """Return (steps of the whole schedule, A1111's t_enc: one less than the steps taken).

    Args:
        steps: the requested number, 1 or more.
        denoising_strength: 0 … 1.
        exact_steps: take as many steps as requested, on a longer schedule; as in the
            second pass of hires fix.

    Raises:
        InputError: the strength is not in 0 … 1, or is 0 with exact steps.
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
    """Return the part of the schedule that is used: the last t_enc + 1 steps.

    DDIM, DDIM CFG++ and PLMS take the last t_enc - 1 of their own, and UniPC t_enc even ones, both
    from one timestep below that of the noise.

    Args:
        levels: of the model, of the sampler's kind (`Sampler.levels`).
        sampler: its name in `SAMPLERS`.
        schedule_type: `Automatic`, or a name in `SCHEDULES`.
        steps: the requested number.
        denoising_strength: 0 … 1; 1 is used as 0.999.
        exact_steps: see `img2img_steps`.
        options: A1111's settings of the schedule.

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
    """Return the run of a sampler with timesteps of its own."""
    timesteps = leading_timesteps(levels, total + options.discard_penultimate)
    t_enc = min(t_enc, len(timesteps) - 1)
    noise_sigma = levels.sigma(timesteps[t_enc])
    known = timesteps[: max(1, t_enc)]
    sigmas = [levels.sigma(timestep) for timestep in reversed(known)]
    if SAMPLERS[sampler].own_schedule is unipc_levels and t_enc:
        sigmas = unipc_grid(levels, (known[-1] + 1) / levels.count, t_enc, options.unipc_skip)
    whole_range = levels.sigma(timesteps[0]), levels.sigma_max
    return Img2ImgRun(sigmas, noise_sigma, whole_range, levels)
