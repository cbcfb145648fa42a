"""Samplers by their A1111 names, each one short function.

A noisy latent is x = x0 + sigma * noise (Karras et al. 2022, arXiv 2206.00364). A sampler asks the
denoiser which clean latent is expected at (x, sigma), and so works with every base model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log, sqrt
from typing import Protocol

from torch import Tensor

from inference.noise import NoiseSource
from inference.schedules import SCHEDULES, NoiseLevels, Schedule, ddim_levels, uniform

Denoise = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> the clean latent expected there; all of shape (b, c, h, w), fp32."""

Callback = Callable[[int, Tensor], None]
"""Called in every step, with its number (from 0) and the clean latent expected in it."""


class SamplerFunction(Protocol):
    """What every sampler is."""

    def __call__(
        self,
        denoiser: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        noise: NoiseSource,
        callback: Callback | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Takes latents x (b, c, h, w), fp32, from the first of the sigmas to the last.

        Args:
            denoiser: says which clean latents are expected.
            x: latents with noise of the first sigma.
            sigmas: falling, the last one usually 0.
            noise: where fresh noise comes from.
            callback: called in every step.
            eta: share of fresh noise, in samplers that add any.
        """
        ...


def euler(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Euler steps along dx / dsigma = (x - denoised) / sigma: arXiv 2206.00364, algorithm 1."""
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if callback:
            callback(step, denoised)
        x = x + (x - denoised) * ((next_sigma - sigma) / sigma)
    return x


def heun(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Heun's steps, two evaluations each but the last: arXiv 2206.00364, algorithm 1."""
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if callback:
            callback(step, denoised)
        slope = (x - denoised) / sigma
        trial = x + slope * (next_sigma - sigma)
        if next_sigma == 0:
            x = trial
            continue
        next_slope = (trial - denoiser(trial, next_sigma)) / next_sigma
        x = x + (slope + next_slope) * ((next_sigma - sigma) / 2)
    return x


def euler_ancestral(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Euler steps below the next sigma, and up to it again with fresh noise.

    eta 1 is the posterior of Ho et al. 2020 (arXiv 2006.11239) between two levels of noise.
    """
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if callback:
            callback(step, denoised)
        fresh, kept = split_noise(sigma, next_sigma, eta)
        x = x + (x - denoised) * ((kept - sigma) / sigma)
        if next_sigma > 0:
            x = x + noise.normal() * fresh
    return x


def split_noise(sigma: float, next_sigma: float, eta: float) -> tuple[float, float]:
    """(fresh, kept): shares of the next level's noise, with fresh^2 + kept^2 = next_sigma^2."""
    fresh = eta * next_sigma * sqrt(sigma**2 - next_sigma**2) / sigma
    fresh = min(next_sigma, fresh)
    return fresh, sqrt(next_sigma**2 - fresh**2)


def dpmpp_2m(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022, arXiv 2211.01095, algorithm 2; in lambda = -log sigma."""
    return dpmpp_2m_sde(denoiser, x, sigmas, noise, callback, eta=0.0)


def dpmpp_2m_sde(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint: arXiv 2211.01095, equations 18 and 19; Brownian noise.

    With the last step's length h' and r = h' / h, the clean latent is taken as denoised +
    (denoised - that of the last step) / 2r; the last step, to sigma 0, ends at `denoised`.
    """
    path = noise.brownian(min(s for s in sigmas if s > 0), max(sigmas)) if eta else None
    last_denoised, last_length = None, 0.0
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, sigma)
        if callback:
            callback(step, denoised)
        if next_sigma == 0:
            x = denoised
            continue
        length = log(sigma / next_sigma)
        target = denoised
        if last_denoised is not None:
            target = denoised + (denoised - last_denoised) * (length / (2 * last_length))
        share = -expm1(-length * (1 + eta))
        x = x * (1 - share) + target * share
        if path:
            x = x + path(sigma, next_sigma) * (next_sigma * sqrt(-expm1(-2 * length * eta)))
        last_denoised, last_length = denoised, length
    return x


def ddim(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM: Song et al. 2021, arXiv 2010.02502, equations 12 and 16.

    In terms of sigma these are `euler_ancestral`'s steps. Where the last sigma is not 0, the rest
    of the noise stays in, and the latent is scaled to the variance that the model knows it in.
    """
    x = euler_ancestral(denoiser, x, sigmas, noise, callback, eta)
    return x / sqrt(1 + sigmas[-1] ** 2)


@dataclass(frozen=True)
class Sampler:
    """A sampler and what belongs to its name in A1111."""

    function: SamplerFunction
    automatic: str = "Automatic"
    """The schedule type that `Automatic` stands for, and is told as."""
    own_schedule: Schedule = uniform
    """The sigmas of `Automatic` where that stands for no other."""
    default_eta: float | None = None
    """Share of fresh noise unless told otherwise; None where there is none."""
    is_scaled: bool = False
    """Starts from noise of the variance sigma^2 + 1, as if nothing else were in the latent."""

    def start_scale(self, sigma: float) -> float:
        """What the first noise is multiplied by."""
        return sqrt(1 + sigma**2) if self.is_scaled else sigma


SAMPLERS: dict[str, Sampler] = {
    "Euler": Sampler(euler),
    "Euler a": Sampler(euler_ancestral, default_eta=1.0),
    "Heun": Sampler(heun),
    "DPM++ 2M": Sampler(dpmpp_2m, automatic="Karras"),
    "DPM++ 2M SDE": Sampler(dpmpp_2m_sde, automatic="Exponential", default_eta=1.0),
    "DDIM": Sampler(ddim, own_schedule=ddim_levels, default_eta=0.0, is_scaled=True),
}
"""The samplers by name."""


def resolve_schedule(sampler: str, schedule_type: str) -> str:
    """What `Automatic` stands for with this sampler, as A1111 tells it; else the type itself."""
    return SAMPLERS[sampler].automatic if schedule_type == "Automatic" else schedule_type


def sampling_sigmas(
    levels: NoiseLevels, sampler: str, schedule_type: str, steps: int
) -> list[float]:
    """The falling sigmas that a sampler goes through."""
    name = resolve_schedule(sampler, schedule_type)
    schedule = SAMPLERS[sampler].own_schedule if name == "Automatic" else SCHEDULES[name]
    return schedule(levels, steps)
