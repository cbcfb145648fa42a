"""Samplers for clips: through a model's own timesteps, or through sigmas as for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from inference.config import ClipConfig
from inference.models import DiffusionModel, Parametrization
from inference.sampling import (
    SAMPLERS,
    Denoise,
    Img2ImgRun,
    NoiseLevels,
    NoiseSource,
    Sampler,
    img2img_sigmas,
    img2img_steps,
    model_noise_scheduler,
    sampling_sigmas,
)

Predict = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(latents as the model sees them, timestep, number of the step) -> (the guided prediction, that of
the negative prompt), fp32."""


@dataclass(frozen=True)
class ClipStart:
    """The start of a clip, (1, f', c, h', w'), in the model's dtype."""

    noise: Tensor
    clean: Tensor | None = None
    """The latents of the source clip in video-to-video."""


def steps_taken(request: ClipConfig) -> int:
    """Return how many steps are taken; in video-to-video only the last ones."""
    if request.video is None:
        return request.steps
    if request.sampler is None or SAMPLERS[request.sampler].uses_model_steps:
        return min(int(request.steps * request.strength), request.steps)
    return img2img_steps(request.steps, request.strength)[1] + 1


class ClipRun(Protocol):
    """A sampler and its steps for one clip."""

    @property
    def timesteps(self) -> list[int]:
        """Return the timestep of each step, for guidance and caches."""
        ...

    def draw(
        self,
        start: ClipStart,
        predict: Predict,
        generator: torch.Generator,
        report: Callable[[int], object],
    ) -> Tensor:
        """Return clean latents, in the model's dtype."""
        ...


def plan_run(base: DiffusionModel, request: ClipConfig, device: torch.device | str) -> ClipRun:
    """Return the run of the request's sampler."""
    sampler = SAMPLERS[str(request.sampler)]
    if sampler.uses_model_steps:
        known = model_noise_scheduler(str(request.sampler), base.noise_schedule)
        known.set_timesteps(request.steps, device=device)
        taken = known.timesteps[request.steps - steps_taken(request) :]
        return TimestepRun(sampler, request, base.parametrization, known, taken)
    levels = sampler.levels(base.parametrization)
    way = levels, str(request.sampler), "Automatic", request.steps
    if request.video is not None:
        run = img2img_sigmas(*way, request.strength)
    else:
        sigmas = sampling_sigmas(*way)
        above = [sigma for sigma in sigmas if sigma > 0]
        run = Img2ImgRun(sigmas, sigmas[0], (min(above), max(above)), levels)
    return SigmaRun(sampler, request, base.parametrization, run)


@dataclass(frozen=True)
class TimestepRun:
    """Sampling through the model's own timesteps, in its own scale and dtype."""

    sampler: Sampler
    request: ClipConfig
    parametrization: Parametrization
    noise_scheduler: Any
    taken: Tensor

    @property
    def timesteps(self) -> list[int]:
        return [int(timestep) for timestep in self.taken]

    def draw(
        self,
        start: ClipStart,
        predict: Predict,
        generator: torch.Generator,
        report: Callable[[int], object],
    ) -> Tensor:
        x = start.noise
        if start.clean is not None:
            noised = self.parametrization.add_noise(start.clean, x, self.taken[:1].cpu())
            x = noised.to(x.dtype)
        model = TimestepModel(
            predict, self.noise_scheduler, self.request.steps, self.taken, generator
        )
        options = self.sampler.options(self.request.eta)
        noise = ClipNoise(generator, x, self.request.seed)
        denoiser = cast("Denoise", model)  # which samplers with `uses_model_steps` do not call
        return self.sampler.function(
            denoiser, x, [], noise, lambda step, _: report(step + 1), options
        )


@dataclass
class TimestepModel:
    """A video model as `ModelSteps`; each step evaluates it once."""

    guided: Predict
    noise_scheduler: Any
    steps: int
    timesteps: Tensor
    generator: torch.Generator
    number: int = 0

    def predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        predicted, _ = self.guided(x, timestep, self.number)
        self.number += 1
        return predicted


@dataclass(frozen=True)
class SigmaRun:
    """Sampling through falling sigmas, in fp32: A1111's samplers."""

    sampler: Sampler
    request: ClipConfig
    parametrization: Parametrization
    run: Img2ImgRun

    @property
    def timesteps(self) -> list[int]:
        return [round(self.run.levels.timestep(sigma)) for sigma in self.run.sigmas[:-1]]

    def draw(
        self,
        start: ClipStart,
        predict: Predict,
        generator: torch.Generator,
        report: Callable[[int], object],
    ) -> Tensor:
        levels, sigmas = self.run.levels, self.run.sigmas
        fresh = start.noise.float()
        if start.clean is None:
            x = fresh * self.sampler.start_scale(sigmas[0], levels.scale)
        else:
            x = self.run.start(start.clean.float(), fresh)
        denoiser = ClipDenoiser(predict, self.parametrization, levels, sigmas, start.noise.dtype)
        noise = ClipNoise(generator, fresh, self.request.seed, self.run.brownian_range)
        options = self.sampler.options(
            self.request.eta, timestep_of=levels.timestep, scale_of=levels.scale
        )
        steps = len(sigmas) - 1
        x = self.sampler.function(
            denoiser, x, sigmas, noise, lambda step, _: report(min(step + 1, steps)), options
        )
        return x.to(start.noise.dtype)


@dataclass
class ClipDenoiser:
    """A video model as a function (x, sigma) -> clean latents, fp32; a `GuidedDenoise`."""

    predict: Predict
    parametrization: Parametrization
    levels: NoiseLevels
    sigmas: Sequence[float]
    dtype: torch.dtype
    """The model's dtype."""
    last_uncond: Tensor | None = field(default=None, init=False)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the clean latents expected at x (1, f', c, h', w')."""
        timestep = torch.tensor(self.levels.timestep(sigma), device=x.device)
        seen = (x / self.levels.scale(sigma)).to(self.dtype)
        guided, negative = self.predict(seen, timestep, self.step_at(sigma))
        self.last_uncond = self.parametrization.denoised(x, negative, sigma)
        return self.parametrization.denoised(x, guided, sigma)

    def step_at(self, sigma: float) -> int:
        """Return the index of the step of a sigma: the last step that begins at or above it."""
        begun = [number for number, one in enumerate(self.sigmas[:-1]) if one >= sigma * (1 - 1e-9)]
        return begun[-1] if begun else 0


@dataclass
class ClipNoise:
    """Fresh noise of one clip: from the generator of its first noise."""

    generator: torch.Generator
    like: Tensor
    seed: int
    brownian_range: tuple[float, float] | None = None

    def normal(self) -> Tensor:
        """Return standard normal noise of the latents' shape, fp32."""
        return torch.randn(self.like.shape, generator=self.generator).to(self.like.device)

    def brownian(self, sigma_min: float, sigma_max: float) -> Callable[[float, float], Tensor]:
        """Return a Brownian path of the clip's seed; see `NoiseSource.brownian`."""
        source = NoiseSource(
            [self.seed],
            tuple(self.like.shape[1:]),
            self.like.device,
            brownian_range=self.brownian_range,
        )
        return source.brownian(sigma_min, sigma_max)
