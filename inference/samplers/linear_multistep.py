"""LMS: Adams-Bashforth steps of order 4 between unevenly spaced sigmas."""

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor

from inference.noise import NoiseSource
from inference.samplers.base import PLAIN, Callback, Denoise, SamplerOptions

ORDER = 4


def lms(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    callback: Callback | None = None,
    options: SamplerOptions = PLAIN,
) -> Tensor:
    """Each step by the polynomial through the last four slopes (k-diffusion, K. Crowson)."""
    slopes: list[Tensor] = []
    for step, sigma in enumerate(sigmas[:-1]):
        denoised = denoiser(x, sigma)
        if callback:
            callback(step, denoised)
        slopes = [(x - denoised) / sigma, *slopes[: ORDER - 1]]
        known = [sigmas[step - back] for back in range(len(slopes))]
        for slope, share in zip(slopes, shares(known, sigma, sigmas[step + 1]), strict=True):
            x = x + slope * share
    return x


def shares(known: Sequence[float], low: float, high: float) -> list[float]:
    """Integrals from `low` to `high` of the Lagrange polynomials of the points `known`."""
    places, weights = np.polynomial.legendre.leggauss(len(known))  # exact at these degrees
    points = low + (places + 1) / 2 * (high - low)
    integrals = []
    for own in known:
        others = [other for other in known if other != own]
        values = prod((points - other) / (own - other) for other in others)
        integrals.append(float((weights * values).sum()) * (high - low) / 2)
    return integrals
