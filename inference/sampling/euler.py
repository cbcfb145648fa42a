"""Samplers of first order: Euler and Euler a."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.sampling.base import Sampling, split_noise
from inference.sampling.entries import stepwise
from inference.sampling.levels import LcmLevels

if TYPE_CHECKING:
    from torch import Tensor


@stepwise("Euler", uses_churn=True, aliases=("k_euler",))
def euler(run: Sampling, x: Tensor) -> Tensor:
    """Euler steps along dx / dsigma = (x - denoised) / sigma: arXiv 2206.00364, algorithm 2."""
    for step, (sigma, next_sigma) in run.steps():
        x, raised = run.churned(x, sigma)
        denoised = run.denoised(step, x, raised)
        x = x + (x - denoised) * ((next_sigma - raised) / raised)
    return x


@stepwise("Euler a", default_eta=1.0, aliases=("k_euler_a", "k_euler_ancestral"))
def euler_ancestral(run: Sampling, x: Tensor) -> Tensor:
    """Euler steps below the next sigma, and up to it again with fresh noise.

    eta 1 is the posterior of Ho et al. 2020 (arXiv 2006.11239) between two levels of noise.
    """
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        fresh, kept = split_noise(sigma, next_sigma, run.options.eta)
        x = x + (x - denoised) * ((kept - sigma) / sigma)
        if next_sigma > 0:
            x = x + run.noise.normal() * fresh
    return x


SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0


@stepwise("LCM", levels=LcmLevels, always_draws=True, aliases=("k_lcm",))
def lcm(run: Sampling, x: Tensor) -> Tensor:
    """Step to the clean latent, and up to the next sigma with fresh noise: algorithm 3."""
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoiser(x, sigma)
        if run.options.timestep_of:
            denoised = bounded(denoised, x, run.options.timestep_of(sigma))
        run.report(step, denoised)
        x = denoised
        if next_sigma > 0:
            x = x + run.noise.normal() * next_sigma
    return x


def bounded(denoised: Tensor, x: Tensor, timestep: float) -> Tensor:
    """Apply the consistency function, which returns x at timestep 0: section 4.1."""
    time = timestep * TIMESTEP_SCALING
    norm = time**2 + SIGMA_DATA**2
    return denoised * (time / norm**0.5) + x * (SIGMA_DATA**2 / norm)
