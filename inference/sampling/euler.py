"""Samplers of first order: Euler and Euler a."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from inference.sampling.base import PLAIN, Callback, Denoise, SamplerOptions, churn, split_noise
from inference.sampling.entries import sampler
from inference.sampling.levels import LcmLevels

if TYPE_CHECKING:
    from torch import Tensor

    from inference.sampling.base import FreshNoise


@sampler("Euler", uses_churn=True, aliases=("k_euler",))
def euler(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: FreshNoise,
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


@sampler("Euler a", default_eta=1.0, aliases=("k_euler_a", "k_euler_ancestral"))
def euler_ancestral(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: FreshNoise,
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


SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0


@sampler("LCM", levels=LcmLevels, always_draws=True, aliases=("k_lcm",))
def lcm(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: FreshNoise,
    callback: Callback | None = None,
    options: SamplerOptions = PLAIN,
) -> Tensor:
    """Step to the clean latent, and up to the next sigma with fresh noise: algorithm 3."""
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
    """Apply the consistency function, which returns x at timestep 0: section 4.1."""
    time = timestep * TIMESTEP_SCALING
    norm = time**2 + SIGMA_DATA**2
    return denoised * (time / norm**0.5) + x * (SIGMA_DATA**2 / norm)
