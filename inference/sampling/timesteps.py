"""DDIM, DDIM CFG++ and PLMS: samplers that A1111 runs by timesteps, here also by sigmas.

Their latents have variance 1 there, and so x / sqrt(1 + sigma^2) here (for other parametrizations
x / `SamplerOptions.scale_of`). If the last sigma is not 0, the remaining noise stays in, and
the latent has the model's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference.sampling.base import GuidedDenoise, Sampling, split_noise
from inference.sampling.entries import stepwise
from inference.sampling.euler import euler_ancestral
from inference.sampling.schedules import ddim_levels

if TYPE_CHECKING:
    from torch import Tensor


@stepwise("DDIM", own_schedule=ddim_levels, default_eta=0.0, is_scaled=True, aliases=("ddim",))
def ddim(run: Sampling, x: Tensor) -> Tensor:
    """DDIM: Song et al. 2021, arXiv 2010.02502, equations 12 and 16.

    In terms of sigma these are `euler_ancestral`'s steps.
    """
    x = euler_ancestral(run, x)
    return x / run.options.scale_of(run.sigmas[-1])


@stepwise(
    "DDIM CFG++",
    own_schedule=ddim_levels,
    default_eta=0.0,
    is_scaled=True,
    cfg_divisor=12.5,
    needs_uncond=True,
    aliases=("ddim_cfgpp",),
)
def ddim_cfgpp(run: Sampling, x: Tensor) -> Tensor:
    """DDIM CFG++: Chung et al. 2024, arXiv 2406.08070, algorithm 1.

    The noise that is added back is that predicted with the negative prompts.

    Raises:
        TypeError: the denoiser has no prediction for the negative prompts.
    """
    denoiser = run.denoiser
    if not isinstance(denoiser, GuidedDenoise):
        raise TypeError("DDIM CFG++ needs a denoiser with `last_uncond`")
    for step, (sigma, next_sigma) in run.steps():
        denoised = run.denoised(step, x, sigma)
        if denoiser.last_uncond is None:
            raise TypeError("DDIM CFG++ needs negative prompts at every scale")
        fresh, kept = split_noise(sigma, next_sigma, run.options.eta)
        x = denoised + (x - denoiser.last_uncond) * (kept / sigma)
        if next_sigma > 0:
            x = x + run.noise.normal() * fresh
    return x / run.options.scale_of(run.sigmas[-1])


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest noise, the one before …, by how many there are."""


@stepwise("PLMS", own_schedule=ddim_levels, is_scaled=True, aliases=("plms",))
def plms(run: Sampling, x: Tensor) -> Tensor:
    """PLMS: Liu et al. 2022, arXiv 2202.09778, section 3.4.

    Each step goes by the last four noises as if timesteps, and sigmas, were even; the first one by
    the mean of the noises at both its ends.
    """
    seen: list[Tensor] = []
    for step, (sigma, next_sigma) in run.steps():
        slope = (x - run.denoised(step, x, sigma)) / sigma
        seen = [slope, *seen[:3]]
        mixed = sum_of(seen, ADAMS_BASHFORTH[len(seen) - 1])
        if step == 0 and next_sigma > 0:
            trial = x + slope * (next_sigma - sigma)
            mixed = (slope + (trial - run.denoiser(trial, next_sigma)) / next_sigma) / 2
        x = x + mixed * (next_sigma - sigma)
    return x / run.options.scale_of(run.sigmas[-1])


def sum_of(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted sum of the values."""
    total = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        total = total + value * share
    return total
