"""Samplers by their A1111 names, each one short function.

A noisy latent is x = x0 + sigma * noise (Karras et al. 2022, arXiv 2206.00364). A sampler asks the
denoiser which clean latent is expected at (x, sigma), and so works with every base model. Steps,
noise and their order are those of A1111 1.10.1, which takes most of them from k-diffusion 0.0.16.
"""

from inference.sampling.base import (
    Callback,
    Denoise,
    GuidedDenoise,
    SamplerFunction,
    SamplerOptions,
)
from inference.sampling.img2img import Img2ImgRun, img2img_sigmas, img2img_steps
from inference.sampling.registry import (
    SAMPLERS,
    Sampler,
    find_sampler,
    resolve_schedule,
    sampling_sigmas,
)

__all__ = [
    "SAMPLERS",
    "Callback",
    "Denoise",
    "GuidedDenoise",
    "Img2ImgRun",
    "Sampler",
    "SamplerFunction",
    "SamplerOptions",
    "find_sampler",
    "img2img_sigmas",
    "img2img_steps",
    "resolve_schedule",
    "sampling_sigmas",
]
