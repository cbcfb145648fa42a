"""DPM fast and DPM adaptive: DPM-Solver, Lu et al. 2022, arXiv 2206.00927; as in k-diffusion.

Both use only the highest sigma and the last one above 0 of the list, and choose their own between
them, by lambda = -log sigma. They end at that last one, and so leave its noise in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import atan, exp, expm1, log, sqrt
from typing import TYPE_CHECKING

from inference.sampling.base import Denoise, Sampling, split_noise
from inference.sampling.entries import stepwise

if TYPE_CHECKING:
    from torch import Tensor

FIRST, SECOND = 1 / 3, 2 / 3
"""Positions of the second and third evaluation in a step of order 3."""

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 0.05, 0.0078
FIRST_LENGTH = 0.05
SAFETY = 0.81
"""A step is accepted if the next one may be at least this long in relation to it."""


@stepwise(
    "DPM fast",
    default_eta=1.0,
    uses_s_noise=True,
    takes_range_only=True,
    aliases=("k_dpm_fast",),
)
def dpm_fast(run: Sampling, x: Tensor) -> Tensor:
    """Use as many evaluations as steps, most of them in steps of order 3: appendix C.2."""
    import numpy as np

    if len(run.sigmas) == 2 and run.sigmas[-1] == 0:
        return run.denoised(0, x, run.sigmas[0])
    start, end = ends(run.sigmas)
    orders = fast_orders(len(run.sigmas) - 1)
    times = np.linspace(start, end, len(orders) + 1).tolist()
    for step, ((time, next_time), order) in enumerate(zip(pairwise(times), orders, strict=True)):
        fresh, kept_time = split_time(time, next_time, end, run.options.eta)
        slope, denoised = noise_at(run.denoiser, x, time)
        run.report(step, denoised)
        x = solver_step(run.denoiser, x, slope, time, kept_time, order)
        if run.options.eta:
            x = x + run.noise.normal() * (fresh * run.options.s_noise)
    return x


@stepwise(
    "DPM adaptive",
    default_eta=1.0,
    takes_range_only=True,
    couples_batch=True,
    aliases=("k_dpm_ad",),
)
def dpm_adaptive(run: Sampling, x: Tensor) -> Tensor:
    """Take steps of order 3, as long as they agree with those of order 2: appendix C.3.

    The error is taken over the whole batch: images generated together get the same steps. Generate
    one at a time for images that do not depend on their neighbours.
    """
    if len(run.sigmas) == 2 and run.sigmas[-1] == 0:
        return run.denoised(0, x, run.sigmas[0])
    time, end = ends(run.sigmas)
    length, exponent = FIRST_LENGTH, 1 / (1.5 if run.options.eta else 3)
    previous, step = x, 0
    while time < end - 1e-5:
        next_time = min(end, time + length)
        fresh, kept_time = split_time(time, next_time, end, run.options.eta)
        slope, denoised = noise_at(run.denoiser, x, time)
        low, high = both_orders(run.denoiser, x, slope, time, kept_time)
        run.report(step, denoised)
        step += 1
        tolerance = (low.abs().maximum(previous.abs()) * RELATIVE_TOLERANCE).clamp(
            min=ABSOLUTE_TOLERANCE
        )
        error = ((low - high) / tolerance).square().mean().sqrt().item()
        factor = 1 + atan((error + 1e-8) ** -exponent - 1)
        length *= factor
        if factor < SAFETY:
            continue
        previous, x, time = low, high, next_time
        if run.options.eta:
            x = x + run.noise.normal() * fresh
    return x


def ends(sigmas: Sequence[float]) -> tuple[float, float]:
    """Return -log of the first sigma, and of the last above 0."""
    last = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
    return -log(sigmas[0]), -log(last)


def fast_orders(evaluations: int) -> list[int]:
    """Return the orders of DPM fast's steps; their sum is the number of evaluations."""
    threes, rest = divmod(evaluations, 3)
    return [3] * (threes - 1) + [2, 1] if rest == 0 else [3] * threes + [rest]


def split_time(time: float, next_time: float, end: float, eta: float) -> tuple[float, float]:
    """Return (fresh noise, time to step to before it is added), not beyond the end."""
    if not eta:
        return 0.0, next_time
    _, kept = split_noise(exp(-time), exp(-next_time), eta)
    kept_time = min(end, -log(kept)) if kept > 0 else end
    return sqrt(max(0.0, exp(-2 * next_time) - exp(-2 * kept_time))), kept_time


def noise_at(denoiser: Denoise, x: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """Return (noise of variance 1, clean latent) that the denoiser predicts from x."""
    sigma = exp(-time)
    denoised = denoiser(x, sigma)
    return (x - denoised) / sigma, denoised


def solver_step(
    denoiser: Denoise, x: Tensor, slope: Tensor, time: float, next_time: float, order: int
) -> Tensor:
    """Take a step of order 1, 2 or 3: algorithms 1 and 2 of the paper."""
    if order == 1:
        return straight(x, slope, time, next_time)
    if order == 3:
        return both_orders(denoiser, x, slope, time, next_time)[1]
    middle = (time + next_time) / 2
    other, _ = noise_at(denoiser, straight(x, slope, time, middle), middle)
    bend = (other - slope) * (exp(-next_time) * expm1(next_time - time))
    return straight(x, slope, time, next_time) - bend


def both_orders(
    denoiser: Denoise, x: Tensor, slope: Tensor, time: float, next_time: float
) -> tuple[Tensor, Tensor]:
    """Return the steps of order 2 and 3, which share their second evaluation."""
    length = next_time - time
    sigma = exp(-next_time)
    first, second = time + FIRST * length, time + SECOND * length
    near = noise_at(denoiser, straight(x, slope, time, first), first)[0] - slope
    trial = straight(x, slope, time, second)
    part = SECOND * length
    trial = trial - near * (exp(-second) * SECOND / FIRST * (expm1(part) / part - 1))
    far = noise_at(denoiser, trial, second)[0] - slope
    end = straight(x, slope, time, next_time)
    low = end - near * (sigma / (2 * FIRST) * expm1(length))
    high = end - far * (sigma / SECOND * (expm1(length) / length - 1))
    return low, high


def straight(x: Tensor, slope: Tensor, time: float, next_time: float) -> Tensor:
    """Step from one time to another with constant noise."""
    return x - slope * (exp(-next_time) * expm1(next_time - time))
