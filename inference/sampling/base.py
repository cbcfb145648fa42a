"""The shared parts of all samplers: signature, options, and added noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from inference.runtime import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Blend = Callable[["Tensor", float], "Tensor"]
"""(latents (b, c, h, w), sigma) -> the latents to continue with."""


Denoise = Callable[["Tensor", float], "Tensor"]
"""(x, sigma) -> the clean latent expected there; for images (b, c, h, w), for clips (b, f, c, h,
w), fp32."""

ScaleOf = Callable[[float], float]
"""sigma -> the divisor of x0 + sigma * noise that gives what the model sees."""

Callback = Callable[[int, "Tensor"], object]
"""Called in every step, with its number (from 0) and the clean latent expected in it."""

UniPCVariant = Literal["bh1", "bh2", "vary_coeff"]


@runtime_checkable
class GuidedDenoise(Protocol):
    """A denoiser that also exposes its expectation for the negative prompts, as CFG++ needs."""

    last_uncond: Tensor | None
    """The clean latent (b, c, h, w) expected for the negative prompts at the last call."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the clean latent expected at (x, sigma), with guidance."""
        ...


@runtime_checkable
class ModelSteps(Protocol):
    """A model evaluated at its own timesteps, in its own scale, as CogVideoX' samplers need."""

    noise_scheduler: Any
    """diffusers' scheduler of the sampler, its timesteps set."""
    steps: int
    """Steps of the whole schedule."""
    timesteps: Tensor
    """The steps that are taken."""
    generator: torch.Generator
    """The source of fresh noise."""

    def predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the model's prediction, fp32, with guidance."""
        ...


class FreshNoise(Protocol):
    """The source of a sampler's fresh noise: `NoiseSource` for images."""

    def normal(self) -> Tensor:
        """Return standard normal noise of the latents' shape, fp32."""
        ...

    def brownian(self, sigma_min: float, sigma_max: float) -> Callable[[float, float], Tensor]:
        """Return a Brownian path as a function (sigma, next sigma) -> noise of variance 1."""
        ...


def variance_preserving(sigma: float) -> float:
    """Return the scale of noisy latents of variance-preserving models."""
    return sqrt(1 + sigma**2)


@dataclass(frozen=True)
class SamplerOptions:
    """A1111's sampler settings. Samplers use those that they support.

    `Sampler.options` makes one with the sampler's own default of eta.

    Raises:
        InputError: a value is out of range.
    """

    eta: float = 0.0
    """Share of fresh noise; where `Sampler.default_eta` is not None."""
    s_churn: float = 0.0
    """Noise added before each step, over all steps together; in Euler, Heun, DPM2 (0 … 100)."""
    s_tmin: float = 0.0
    """Below this sigma no such noise is added."""
    s_tmax: float = inf
    """Above this sigma no such noise is added; 0 is infinite too, as in A1111's settings."""
    s_noise: float = 1.0
    """Added noise is multiplied by this; in those three, and in DPM2 a, DPM fast and all
    DPM++ but 2M. (Euler a, DDIM, DPM adaptive, Restart and LCM ignore it, as in A1111.)"""
    unipc_order: int = 3
    """Model evaluations that a step of UniPC uses; at most the number of steps."""
    unipc_variant: UniPCVariant = "bh1"
    """UniPC's variant of their weights."""
    unipc_lower_order_final: bool = True
    """The last steps of UniPC are of lower order."""
    timestep_of: Callable[[float], float] | None = None
    """sigma -> the timestep of the model's evaluation. With it LCM has its boundary condition,
    without it not, which changes latents by less than 1e-5 of themselves."""

    scale_of: ScaleOf = variance_preserving
    """sigma -> the scale of latents in the model; for samplers with `Sampler.is_scaled`."""

    def __post_init__(self) -> None:
        for name in ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"{name}: must not be negative, got {value}")
        if self.unipc_order < 1:
            raise InputError(f"unipc_order: must be at least 1, got {self.unipc_order}")
        if self.unipc_variant not in get_args(UniPCVariant):
            names = ", ".join(get_args(UniPCVariant))
            raise InputError(f"unipc_variant: expected one of {names}; got {self.unipc_variant!r}")


PLAIN = SamplerOptions()


class SamplerFunction(Protocol):
    """The signature of every sampler."""

    def __call__(
        self,
        denoiser: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        noise: FreshNoise,
        callback: Callback | None = None,
        options: SamplerOptions = PLAIN,
    ) -> Tensor:
        """Denoise latents x (b, c, h, w), fp32, from the first of the sigmas to the last.

        Args:
            denoiser: returns the expected clean latents.
            x: latents with noise of the first sigma.
            sigmas: falling, the last one usually 0.
            noise: the source of fresh noise.
            callback: called in every step.
            options: further settings.
        """
        ...


def split_noise(sigma: float, next_sigma: float, eta: float) -> tuple[float, float]:
    """Return (fresh, kept): shares of the next level's noise, fresh^2 + kept^2 = next_sigma^2."""
    fresh = eta * next_sigma * sqrt(sigma**2 - next_sigma**2) / sigma
    fresh = min(next_sigma, fresh)
    return fresh, sqrt(next_sigma**2 - fresh**2)


@dataclass(frozen=True)
class Sampling:
    """A call of a sampler: everything but its latents. The fields are `SamplerFunction`'s."""

    denoiser: Denoise
    sigmas: Sequence[float]
    noise: FreshNoise
    callback: Callback | None = None
    options: SamplerOptions = PLAIN

    def steps(self) -> Iterator[tuple[int, tuple[float, float]]]:
        """Return the number of each step with (sigma, next sigma)."""
        return enumerate(pairwise(self.sigmas))

    def denoised(self, step: int, x: Tensor, sigma: float) -> Tensor:
        """Return the clean latent expected at (x, sigma), and report it as that of the step."""
        denoised = self.denoiser(x, sigma)
        self.report(step, denoised)
        return denoised

    def report(self, step: int, denoised: Tensor) -> None:
        """Call the callback, if there is one."""
        if self.callback:
            self.callback(step, denoised)

    def churned(self, x: Tensor, sigma: float) -> tuple[Tensor, float]:
        """Return (x, sigma) with more noise: arXiv 2206.00364, algorithm 2.

        Noise is drawn in every step, also where none is added, as k-diffusion 0.0.16 does.
        """
        options = self.options
        if not options.s_churn:
            return x, sigma
        fresh = self.noise.normal()
        if not options.s_tmin <= sigma <= (options.s_tmax or inf):
            return x, sigma
        raised = sigma * (1 + min(options.s_churn / (len(self.sigmas) - 1), sqrt(2) - 1))
        return x + fresh * (options.s_noise * sqrt(raised**2 - sigma**2)), raised

    def brownian(self) -> Callable[[float, float], Tensor]:
        """Return the Brownian path between the lowest sigma above 0 and the highest."""
        return self.noise.brownian(min(s for s in self.sigmas if s > 0), max(self.sigmas))


def towards(target: Tensor, x: Tensor, ratio: float) -> Tensor:
    """Move x towards the clean latent `target` until `ratio` of the distance is left."""
    return target + (x - target) * ratio
