"""What all samplers share: their signature, their options, and the noise that they add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from inference.runtime import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Blend = Callable[["Tensor", float], "Tensor"]
"""(latents (b, c, h, w), sigma) -> those to go on with."""


Denoise = Callable[["Tensor", float], "Tensor"]
"""(x, sigma) -> the clean latent expected there; of pictures (b, c, h, w), of clips (b, f, c, h,
w), fp32."""

ScaleOf = Callable[[float], float]
"""sigma -> the divisor of x0 + sigma * noise that gives what the model sees."""

Callback = Callable[[int, "Tensor"], object]
"""Called in every step, with its number (from 0) and the clean latent expected in it."""

UniPCVariant = Literal["bh1", "bh2", "vary_coeff"]


@runtime_checkable
class GuidedDenoise(Protocol):
    """A denoiser that also tells what it expects for the negative prompts; CFG++ needs it."""

    last_uncond: Tensor | None
    """The clean latent (b, c, h, w) expected for the negative prompts at the last call."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The clean latent expected at (x, sigma), with guidance."""
        ...


@runtime_checkable
class ModelSteps(Protocol):
    """A model that is asked at its own timesteps, in its own scale, as CogVideoX' samplers are."""

    noise_scheduler: Any
    """diffusers' scheduler of the sampler, its timesteps set."""
    steps: int
    """Steps of the whole schedule."""
    timesteps: Tensor
    """Those that are taken."""
    generator: torch.Generator
    """Where fresh noise comes from."""

    def predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The model's prediction, fp32, with guidance."""
        ...


class FreshNoise(Protocol):
    """Where samplers take fresh noise from: `NoiseSource` of pictures."""

    def normal(self) -> Tensor:
        """Standard normal noise of the latents' shape, fp32."""
        ...

    def brownian(self, sigma_min: float, sigma_max: float) -> Callable[[float, float], Tensor]:
        """A Brownian path as a function (sigma, next sigma) -> noise of variance 1."""
        ...


def variance_preserving(sigma: float) -> float:
    """Return the scale of latents with noise of models that keep the variance 1."""
    return sqrt(1 + sigma**2)


@dataclass(frozen=True)
class SamplerOptions:
    """A1111's sampler settings. Each is heeded by the samplers that know it.

    `Sampler.options` makes one with the sampler's own default of eta.

    Raises:
        InputError: a value is out of range.
    """

    eta: float = 0.0
    """Share of fresh noise; where `Sampler.default_eta` is not None."""
    s_churn: float = 0.0
    """Noise added before each step, over all steps together; in Euler, Heun, DPM2 (0 … 100)."""
    s_tmin: float = 0.0
    """No noise is added so below this sigma."""
    s_tmax: float = inf
    """No noise is added so above this sigma; 0 is infinite too, as in A1111's settings."""
    s_noise: float = 1.0
    """Added noise is multiplied by this; besides in those three in DPM2 a, DPM fast and all
    DPM++ but 2M. (Euler a, DDIM, DPM adaptive, Restart and LCM do not heed it, as in A1111.)"""
    unipc_order: int = 3
    """How many evaluations a step of UniPC goes by; at most as many as there are steps."""
    unipc_variant: UniPCVariant = "bh1"
    """How UniPC weighs them."""
    unipc_lower_order_final: bool = True
    """The last steps of UniPC are of lower order."""
    timestep_of: Callable[[float], float] | None = None
    """The timestep that the model is asked at, by sigma. With it LCM keeps its boundary condition,
    without it leaves that out, which changes latents by less than 1e-5 of themselves."""

    scale_of: ScaleOf = variance_preserving
    """The scale that the model knows latents in, by sigma; of `Sampler.is_scaled` ones."""

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
    """What every sampler is."""

    def __call__(
        self,
        denoiser: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        noise: FreshNoise,
        callback: Callback | None = None,
        options: SamplerOptions = PLAIN,
    ) -> Tensor:
        """Takes latents x (b, c, h, w), fp32, from the first of the sigmas to the last.

        Args:
            denoiser: says which clean latents are expected.
            x: latents with noise of the first sigma.
            sigmas: falling, the last one usually 0.
            noise: where fresh noise comes from.
            callback: called in every step.
            options: what else can be set.
        """
        ...


def split_noise(sigma: float, next_sigma: float, eta: float) -> tuple[float, float]:
    """(fresh, kept): shares of the next level's noise, with fresh^2 + kept^2 = next_sigma^2."""
    fresh = eta * next_sigma * sqrt(sigma**2 - next_sigma**2) / sigma
    fresh = min(next_sigma, fresh)
    return fresh, sqrt(next_sigma**2 - fresh**2)


def churn(
    x: Tensor, sigma: float, steps: int, noise: FreshNoise, options: SamplerOptions
) -> tuple[Tensor, float]:
    """(x, sigma) with more noise: arXiv 2206.00364, algorithm 2.

    Noise is drawn in every step, also where none is added, as k-diffusion 0.0.16 does.
    """
    if not options.s_churn:
        return x, sigma
    fresh = noise.normal()
    if not options.s_tmin <= sigma <= (options.s_tmax or inf):
        return x, sigma
    raised = sigma * (1 + min(options.s_churn / steps, sqrt(2) - 1))
    return x + fresh * (options.s_noise * sqrt(raised**2 - sigma**2)), raised


def towards(target: Tensor, x: Tensor, ratio: float) -> Tensor:
    """From x to the clean latent `target`, so far that `ratio` of the distance is left."""
    return target + (x - target) * ratio
