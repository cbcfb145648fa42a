"""Samplers by their A1111 names, each one short function.

A noisy latent is x = x0 + sigma * noise (Karras et al. 2022, arXiv 2206.00364). A sampler asks the
denoiser which clean latent is expected at (x, sigma), and so works with every base model. Steps,
noise and their order are those of A1111 1.10.1, which takes most of them from k-diffusion 0.0.16.
"""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.sampling.base import (
        Blend,
        Callback,
        Denoise,
        FreshNoise,
        SamplerOptions,
    )
    from inference.sampling.entries import Sampler, sampler
    from inference.sampling.img2img import Img2ImgRun, img2img_sigmas, img2img_steps
    from inference.sampling.levels import (
        LcmLevels,
        NoiseLevels,
        interpolated_place,
        interpolated_sigma,
    )
    from inference.sampling.model_steps import model_noise_scheduler
    from inference.sampling.noise import NoiseSource, SeedVariation
    from inference.sampling.registry import (
        SAMPLERS,
        find_sampler,
        resolve_schedule,
        samplers_of,
        sampling_sigmas,
    )
    from inference.sampling.schedules import (
        SCHEDULES,
        NoiseSchedule,
        Schedule,
        ScheduleOptions,
        schedule,
        schedule_types,
    )

__all__ = [
    "SAMPLERS", "SCHEDULES", "Blend", "Callback", "Denoise", "FreshNoise", "Img2ImgRun",
    "LcmLevels", "NoiseLevels", "NoiseSchedule", "NoiseSource", "Sampler", "SamplerOptions",
    "Schedule", "ScheduleOptions", "SeedVariation", "find_sampler", "img2img_sigmas",
    "img2img_steps", "interpolated_place", "interpolated_sigma", "model_noise_scheduler",
    "resolve_schedule", "sampler", "samplers_of", "sampling_sigmas", "schedule", "schedule_types",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
