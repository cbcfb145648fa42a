"""LCM: the sampler of latent consistency models, Luo et al. 2023, arXiv 2310.04378."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from inference.noise import NoiseSource
from inference.samplers.base import PLAIN, Callback, Denoise, SamplerOptions

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0


def lcm(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    options: SamplerOptions = PLAIN,
) -> Tensor:
    """In every step to the clean latent, and up to the next sigma with fresh noise: algorithm 3."""
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if options.timestep_of:
            denoised = bounded(denoised, x, options.timestep_of(sigma))
        if callback:
            callback(step, denoised)
        x = denoised
        if next_sigma > 0:
            x = x + noise.normal() * next_sigma
    return x


def bounded(denoised: Tensor, x: Tensor, timestep: float) -> Tensor:
    """The consistency function, that at timestep 0 gives back x: section 4.1."""
    time = timestep * TIMESTEP_SCALING
    norm = time**2 + SIGMA_DATA**2
    return denoised * (time / norm**0.5) + x * (SIGMA_DATA**2 / norm)
