"""Samplers of first order: Euler and Euler a."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from inference.noise import NoiseSource
from inference.samplers.base import PLAIN, Callback, Denoise, SamplerOptions, churn, split_noise


def euler(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    options: SamplerOptions = PLAIN,
) -> Tensor:
    """Euler steps along dx / dsigma = (x - denoised) / sigma: arXiv 2206.00364, algorithm 2."""
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        x, raised = churn(x, sigma, len(sigmas) - 1, noise, options)
        denoised = denoiser(x, raised)
        if callback:
            callback(step, denoised)
        x = x + (x - denoised) * ((next_sigma - raised) / raised)
    return x


def euler_ancestral(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    options: SamplerOptions = PLAIN,
) -> Tensor:
    """Euler steps below the next sigma, and up to it again with fresh noise.

    eta 1 is the posterior of Ho et al. 2020 (arXiv 2006.11239) between two levels of noise.
    """
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if callback:
            callback(step, denoised)
        fresh, kept = split_noise(sigma, next_sigma, options.eta)
        x = x + (x - denoised) * ((kept - sigma) / sigma)
        if next_sigma > 0:
            x = x + noise.normal() * fresh
    return x
