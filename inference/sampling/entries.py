"""The registry of samplers: their properties, and the decorator that registers one.

Neither this file nor the samplers import torch when they are loaded, so that recipes are checked
against the registry before torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, Unpack

from inference.runtime import register
from inference.sampling.base import (
    PLAIN,
    Callback,
    Denoise,
    FreshNoise,
    SamplerFunction,
    SamplerOptions,
    Sampling,
    ScaleOf,
    UniPCVariant,
    variance_preserving,
)
from inference.sampling.levels import NoiseLevels
from inference.sampling.schedules import Schedule, uniform

if TYPE_CHECKING:
    from torch import Tensor

Medium = Literal["pictures", "clips"]
Function = TypeVar("Function", bound=SamplerFunction)
Stepwise = Callable[[Sampling, "Tensor"], "Tensor"]
"""A sampler as a function of the call and its first latents."""


def own_levels(levels: NoiseLevels) -> NoiseLevels:
    """Return the model's own levels."""
    return levels


class SamplerFacts(TypedDict, total=False):
    """The options of `@sampler`: the fields of `Sampler` but its function."""

    title: str
    automatic: str
    own_schedule: Schedule
    levels: Callable[[NoiseLevels], NoiseLevels]
    default_eta: float | None
    uses_churn: bool
    uses_s_noise: bool
    always_draws: bool
    is_scaled: bool
    discards_penultimate: bool
    is_second_order: bool
    uses_brownian: bool
    cfg_divisor: float
    needs_uncond: bool
    takes_range_only: bool
    couples_batch: bool
    uses_model_steps: bool
    media: tuple[Medium, ...]
    aliases: tuple[str, ...]


class OtherOptions(TypedDict, total=False):
    """The fields of `SamplerOptions` but eta."""

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    unipc_order: int
    unipc_variant: UniPCVariant
    unipc_lower_order_final: bool
    timestep_of: Callable[[float], float] | None
    scale_of: ScaleOf


@dataclass(frozen=True)
class Sampler:
    """A sampler and the properties of its name in A1111."""

    function: SamplerFunction
    title: str = ""
    """Its name in infotext, if it differs from that in recipes."""
    automatic: str = "Automatic"
    """The schedule type that `Automatic` stands for, and that infotext names."""
    own_schedule: Schedule = uniform
    """The sigmas of `Automatic` if it stands for no other type."""
    levels: Callable[[NoiseLevels], NoiseLevels] = own_levels
    """The noise levels at which the model is evaluated, from its own; the denoiser's too."""
    default_eta: float | None = None
    """Default share of fresh noise; None if there is none, or no choice."""
    uses_churn: bool = False
    """Whether `s_churn` adds noise before its steps."""
    uses_s_noise: bool = False
    """Whether `s_noise` multiplies its fresh noise, besides that of `s_churn`."""
    always_draws: bool = False
    """Whether it draws fresh noise from the image's generator whatever the options are."""
    is_scaled: bool = False
    """Starts from noise alone at the scale that the model knows, as if nothing else were in the
    latent, and ends at a latent of that scale: A1111's samplers by timesteps."""
    discards_penultimate: bool = False
    """Requests one more sigma, and leaves out the last one above 0."""
    is_second_order: bool = False
    """Whether A1111 counts two evaluations a step, for prompt editing and for the refiner."""
    uses_brownian: bool = False
    """Whether fresh noise follows a Brownian path instead of the generator's next values."""
    cfg_divisor: float = 1.0
    """The CFG scale is divided by it."""
    needs_uncond: bool = False
    """The denoiser must be a `GuidedDenoise`, at every CFG scale."""
    takes_range_only: bool = False
    """Whether it uses only the ends of the list of sigmas."""
    couples_batch: bool = False
    """Whether its steps depend on all images of a batch: generate one at a time."""
    uses_model_steps: bool = False
    """Whether it uses the model's own timesteps in the model's own scale: the denoiser must be a
    `ModelSteps`, and there are no sigmas."""
    media: tuple[Medium, ...] = ("pictures", "clips")
    """What it generates."""
    aliases: tuple[str, ...] = ()
    """A1111's internal names."""

    def start_scale(self, sigma: float, scale_of: ScaleOf = variance_preserving) -> float:
        """Return the factor of the first noise; `scale_of` is that of the model."""
        return scale_of(sigma) if self.is_scaled else sigma

    def draws_further_noise(self, eta: float | None, s_churn: float) -> bool:
        """Return whether noise after the first changes the image, so that `ensd` does.

        Samplers named `SDE` follow Brownian paths of the seeds themselves, which it does
        not change.
        """
        share = (self.default_eta or 0.0) if eta is None else eta
        is_ancestral = self.default_eta is not None and not self.uses_brownian and share > 0
        return is_ancestral or self.always_draws or (self.uses_churn and s_churn > 0)

    def options(self, eta: float | None = None, **others: Unpack[OtherOptions]) -> SamplerOptions:
        """Return `SamplerOptions` in which eta, if None, is the sampler's default."""
        return SamplerOptions((self.default_eta or 0.0) if eta is None else eta, **others)


SAMPLERS: dict[str, Sampler] = {}
"""The samplers by their names in recipes; complete once
`inference.sampling.registry` is loaded, which the package does."""


def sampler(name: str, **facts: Unpack[SamplerFacts]) -> Callable[[Function], Function]:
    """Return the decorator that registers a sampler under a name.

    Args:
        name: its name in recipes.
        **facts: fields of `Sampler`.

    Raises:
        ValueError: the name is taken by another function.
    """

    def enter(function: Function) -> Function:
        register(SAMPLERS, name, Sampler(function, **facts))
        return function

    return enter


def stepwise(name: str, **facts: Unpack[SamplerFacts]) -> Callable[[Stepwise], Stepwise]:
    """Return the decorator that registers, as `sampler` does, a function of a `Sampling`."""

    def enter(function: Stepwise) -> Stepwise:
        @wraps(function)
        def sample(
            denoiser: Denoise,
            x: Tensor,
            sigmas: Sequence[float],
            noise: FreshNoise,
            callback: Callback | None = None,
            options: SamplerOptions = PLAIN,
        ) -> Tensor:
            return function(Sampling(denoiser, sigmas, noise, callback, options), x)

        sampler(name, **facts)(sample)
        return function

    return enter
