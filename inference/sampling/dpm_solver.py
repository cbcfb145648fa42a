"""DPM++: Lu et al. 2022, arXiv 2211.01095, by lambda = -log sigma, as in k-diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, expm1, log, sqrt
from typing import TYPE_CHECKING

from inference.sampling.base import PLAIN, Sampling, split_noise, towards
from inference.sampling.entries import Stepwise, stepwise

if TYPE_CHECKING:
    from torch import Tensor


def brownian(
    name: str, alias: str, *, discards_penultimate: bool = False
) -> Callable[[Stepwise], Stepwise]:
    """Register a multistep sampler of stochastic differential equations."""
    return stepwise(
        name,
        automatic="Exponential",
        default_eta=1.0,
        uses_s_noise=True,
        uses_brownian=True,
        discards_penultimate=discards_penultimate,
        aliases=(alias,),
    )


@stepwise("DPM++ 2M", automatic="Karras", aliases=("k_dpmpp_2m",))
def dpmpp_2m(run: Sampling, x: Tensor) -> Tensor:
    """DPM-Solver++(2M): algorithm 2."""
    return second_order_multistep(replace(run, options=PLAIN), x)


@brownian("DPM++ 2M SDE", "k_dpmpp_2m_sde")
def dpmpp_2m_sde(run: Sampling, x: Tensor) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint: equations 18 and 19; Brownian noise."""
    return second_order_multistep(run, x)


@brownian("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun")
def dpmpp_2m_sde_heun(run: Sampling, x: Tensor) -> Tensor:
    """SDE-DPM-Solver++(2M) with the weight of Heun's kind for the second term."""
    return second_order_multistep(run, x, is_heun=True)


def second_order_multistep(run: Sampling, x: Tensor, is_heun: bool = False) -> Tensor:
    """Step by (h / h') times the change, with the last step's length h' and its own length h.

    The change is denoised - that of the last step; the step to sigma 0 ends at `denoised`.
    """
    path = brownian_path(run)
    last_denoised, last_length = None, 0.0
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        if next_sigma == 0:
            x = denoised
            continue
        length = log(sigma / next_sigma)
        way = length * (1 + run.options.eta)
        share = -expm1(-way)
        x = towards(denoised, x, 1 - share)
        if last_denoised is not None:
            weight = 1 - share / way if is_heun else share / 2
            x = x + (denoised - last_denoised) * (weight * length / last_length)
        x = x + path(sigma, next_sigma)
        last_denoised, last_length = denoised, length
    return x


def brownian_path(run: Sampling) -> Callable[[float, float], Tensor | float]:
    """Return the noise of an SDE step from sigma to the next one above 0: 0 where eta is 0."""
    if not run.options.eta:
        return lambda sigma, next_sigma: 0.0
    way = run.brownian()

    def added(sigma: float, next_sigma: float) -> Tensor:
        share = -expm1(-2 * run.options.eta * log(sigma / next_sigma))
        return way(sigma, next_sigma) * (next_sigma * sqrt(share) * run.options.s_noise)

    return added


@brownian("DPM++ 3M SDE", "k_dpmpp_3m_sde", discards_penultimate=True)
def dpmpp_3m_sde(run: Sampling, x: Tensor) -> Tensor:
    """SDE-DPM-Solver++ of order 3, multistep (k-diffusion, K. Crowson); Brownian noise.

    The third term has the correct sign; in diffusers 0.42 it is inverted with eta 1. Its size
    is half of what order 3 requires, as in DPM-Solver's own code and all its successors: the
    error shrinks as in order 2, from a smaller start.
    """
    path = brownian_path(run)
    known: list[tuple[Tensor, float]] = []  # the last (denoised, length), newest first
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        if next_sigma == 0:
            x = denoised
            continue
        length = log(sigma / next_sigma)
        way = length * (1 + run.options.eta)
        second = expm1(-way) / way + 1
        x = towards(denoised, x, exp(-way))
        if len(known) == 1:
            slope = (denoised - known[0][0]) * (length / known[0][1])
            x = x + slope * second
        elif known:
            slope, bend = slope_and_bend(denoised, length, known)
            x = x + slope * second - bend * (second / way - 0.5)
        x = x + path(sigma, next_sigma)
        known = [(denoised, length), *known[:1]]
    return x


def slope_and_bend(
    denoised: Tensor, length: float, known: list[tuple[Tensor, float]]
) -> tuple[Tensor, Tensor]:
    """First and half the second difference of three clean latents, in units of the length."""
    (last, last_length), (before, before_length) = known
    ratio, before_ratio = last_length / length, before_length / length
    near, far = (denoised - last) / ratio, (last - before) / before_ratio
    bend = (near - far) / (ratio + before_ratio)
    return near + bend * ratio, bend


@stepwise(
    "DPM++ 2S a",
    automatic="Karras",
    default_eta=1.0,
    uses_s_noise=True,
    is_second_order=True,
    aliases=("k_dpmpp_2s_a",),
)
def dpmpp_2s_ancestral(run: Sampling, x: Tensor) -> Tensor:
    """DPM-Solver++(2S), algorithm 1, below the next sigma, and up to it again with fresh noise."""
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        fresh, kept = split_noise(sigma, next_sigma, run.options.eta)
        if kept > 0:
            middle = sqrt(sigma * kept)
            denoised = run.denoiser(towards(denoised, x, middle / sigma), middle)
        x = towards(denoised, x, kept / sigma)
        if next_sigma > 0:
            x = x + run.noise.normal() * (fresh * run.options.s_noise)
    return x


@stepwise(
    "DPM++ SDE",
    automatic="Karras",
    default_eta=1.0,
    uses_s_noise=True,
    is_second_order=True,
    uses_brownian=True,
    aliases=("k_dpmpp_sde",),
)
def dpmpp_sde(run: Sampling, x: Tensor) -> Tensor:
    """SDE-DPM-Solver++(2S), by way of the middle in log sigma (k-diffusion); Brownian noise."""
    eta, s_noise = run.options.eta, run.options.s_noise
    path = run.brownian() if eta else None
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        if next_sigma == 0:
            x = denoised
            continue
        middle = sqrt(sigma * next_sigma)
        fresh, kept = split_noise(sigma, middle, eta)
        trial = towards(denoised, x, kept / sigma)
        if path:
            trial = trial + path(sigma, middle) * (fresh * s_noise)
        denoised = run.denoiser(trial, middle)
        fresh, kept = split_noise(sigma, next_sigma, eta)
        x = towards(denoised, x, kept / sigma)
        if path:
            x = x + path(sigma, next_sigma) * (fresh * s_noise)
    return x
