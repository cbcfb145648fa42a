"""Samplers with two evaluations a step: Heun, DPM2, DPM2 a and Restart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import TYPE_CHECKING

from inference.sampling.base import Denoise, Sampling, split_noise
from inference.sampling.entries import stepwise
from inference.sampling.schedules import karras_sigmas

if TYPE_CHECKING:
    from torch import Tensor

ORDER = 4


@stepwise("LMS", aliases=("k_lms",))
def lms(run: Sampling, x: Tensor) -> Tensor:
    """Each step by the polynomial through the last four slopes (k-diffusion, K. Crowson)."""
    slopes: list[Tensor] = []
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[: ORDER - 1]]
        known = [run.sigmas[step - back] for back in range(len(slopes))]
        for slope, share in zip(slopes, shares(known, sigma, next_sigma), strict=True):
            x = x + slope * share
    return x


def shares(known: Sequence[float], low: float, high: float) -> list[float]:
    """Return integrals from `low` to `high` of the Lagrange polynomials of the points `known`."""
    import numpy as np

    places, weights = np.polynomial.legendre.leggauss(len(known))  # exact at these degrees
    points = low + (places + 1) / 2 * (high - low)
    integrals = []
    for own in known:
        others = [other for other in known if other != own]
        values = prod((points - other) / (own - other) for other in others)
        integrals.append(float((weights * values).sum()) * (high - low) / 2)
    return integrals


@stepwise("Heun", uses_churn=True, is_second_order=True, aliases=("k_heun",))
def heun(run: Sampling, x: Tensor) -> Tensor:
    """Heun's steps, two evaluations each but the last: arXiv 2206.00364, algorithm 2."""
    for step, (sigma, next_sigma) in run.steps():
        x, raised = run.churned(x, sigma)
        denoised = run.denoised(step, x, raised)
        x = heun_step(run.denoiser, x, denoised, raised, next_sigma)
    return x


def heun_step(
    denoiser: Denoise, x: Tensor, denoised: Tensor, sigma: float, next_sigma: float
) -> Tensor:
    """Step by the mean of the slopes at both ends; to 0 by the first one alone."""
    slope = (x - denoised) / sigma
    trial = x + slope * (next_sigma - sigma)
    if next_sigma == 0:
        return trial
    next_slope = (trial - denoiser(trial, next_sigma)) / next_sigma
    return x + (slope + next_slope) * ((next_sigma - sigma) / 2)


@stepwise(
    "DPM2",
    automatic="Karras",
    uses_churn=True,
    discards_penultimate=True,
    is_second_order=True,
    aliases=("k_dpm_2",),
)
def dpm2(run: Sampling, x: Tensor) -> Tensor:
    """DPM-Solver-2's steps, by the slope midway in log sigma: Lu et al. 2022, arXiv 2206.00927."""
    for step, (sigma, next_sigma) in run.steps():
        x, raised = run.churned(x, sigma)
        denoised = run.denoised(step, x, raised)
        x = midpoint_step(run.denoiser, x, denoised, raised, next_sigma)
    return x


@stepwise(
    "DPM2 a",
    automatic="Karras",
    default_eta=1.0,
    uses_s_noise=True,
    discards_penultimate=True,
    is_second_order=True,
    aliases=("k_dpm_2_a",),
)
def dpm2_ancestral(run: Sampling, x: Tensor) -> Tensor:
    """DPM2's steps below the next sigma, and up to it again with fresh noise."""
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        fresh, kept = split_noise(sigma, next_sigma, run.options.eta)
        x = midpoint_step(run.denoiser, x, denoised, sigma, kept)
        if next_sigma > 0:
            x = x + run.noise.normal() * (fresh * run.options.s_noise)
    return x


def midpoint_step(
    denoiser: Denoise, x: Tensor, denoised: Tensor, sigma: float, next_sigma: float
) -> Tensor:
    """Step by the slope midway in log sigma; to 0 by the first one."""
    slope = (x - denoised) / sigma
    if next_sigma == 0:
        return x + slope * (next_sigma - sigma)
    middle = sqrt(sigma * next_sigma)
    trial = x + slope * (middle - sigma)
    return x + (trial - denoiser(trial, middle)) * ((next_sigma - sigma) / middle)


@stepwise(
    "Restart",
    automatic="Karras",
    always_draws=True,
    is_second_order=True,
    aliases=("restart",),
)
def restart(run: Sampling, x: Tensor) -> Tensor:
    """Take Heun's steps; from 20 on, go back from sigma 0.1 to 2 with noise, once or twice.

    Xu et al. 2023, arXiv 2306.14878; where to and how often: A1111 1.10.1
    `modules/sd_samplers_extra.py`. The way down is Karras' between the first and the last sigma
    above 0, so short that all steps together are as many as there were sigmas.
    """
    last_sigma = run.sigmas[0]
    for step, (sigma, next_sigma) in enumerate(restart_steps(run.sigmas)):
        if last_sigma < sigma:
            x = x + run.noise.normal() * sqrt(sigma**2 - last_sigma**2)
        denoised = run.denoised(step, x, sigma)
        x = heun_step(run.denoiser, x, denoised, sigma, next_sigma)
        last_sigma = next_sigma
    return x


def restart_steps(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """Return the steps of Restart as pairs (sigma, next sigma); a higher begin is a restart."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    times, length = (2, steps // 4) if steps >= 36 else (1, 9)
    way = [*karras_sigmas(sigmas[-2], sigmas[0], steps - length * times), 0.0]
    low, high = (min(way, key=lambda sigma: abs(sigma - target)) for target in (0.1, 2.0))
    down = list(pairwise(way))
    if high <= low:
        return down
    behind = way.index(low)
    back = list(pairwise(karras_sigmas(low, high, length + 1)))
    return down[:behind] + back * times + down[behind:]
