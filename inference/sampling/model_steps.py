"""CogVideoX' DDIM and DPM: samplers that use a model's own timesteps and scale.

Byte for byte those of diffusers 0.42.1 (`CogVideoXDDIMScheduler`, `CogVideoXDPMScheduler`), which
round latents to the model's dtype after each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inference.sampling.base import Denoise, ModelSteps, Sampling
from inference.sampling.entries import stepwise

if TYPE_CHECKING:
    from torch import Tensor


def model_noise_scheduler(name: str, noise_schedule: Mapping[str, object]) -> Any:
    """Return diffusers' scheduler of a sampler, `ddim` or `dpm`, with a model's noise schedule."""
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

    kinds = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
    return kinds[name].from_config(noise_schedule)


def model_of(denoiser: Denoise, sampler: str) -> ModelSteps:
    """Return the denoiser as the model that a sampler evaluates at its own timesteps.

    Raises:
        TypeError: the denoiser is no `ModelSteps`.
    """
    if not isinstance(denoiser, ModelSteps):
        raise TypeError(f"{sampler} needs a denoiser that is asked at timesteps (`ModelSteps`)")
    return denoiser


@stepwise(
    "ddim",
    title="CogVideoX DDIM",
    default_eta=0.0,
    is_scaled=True,
    uses_model_steps=True,
    media=("clips",),
)
def model_ddim(run: Sampling, x: Tensor) -> Tensor:
    """Sample with DDIM for v-prediction: Song et al. 2020, arXiv 2010.02502."""
    model, dtype = model_of(run.denoiser, "ddim"), x.dtype
    for number, timestep in enumerate(model.timesteps):
        velocity = model.predict(x, timestep)
        if run.options.eta:
            x = noisy_step(model, velocity, int(timestep), x, run.options.eta)
        else:
            x = model.noise_scheduler.step(velocity, timestep, x).prev_sample
        x = x.to(dtype)
        run.report(number, x)
    return x


def noisy_step(
    model: ModelSteps, velocity: Tensor, timestep: int, latents: Tensor, eta: float
) -> Tensor:
    """Take a step of DDIM with eta: arXiv 2010.02502, equations 12 and 16.

    diffusers' CogVideoXDDIMScheduler accepts eta and ignores it.
    """
    from diffusers.utils.torch_utils import randn_tensor

    known = model.noise_scheduler
    previous = timestep - len(known.alphas_cumprod) // model.steps
    now = float(known.alphas_cumprod[timestep])
    then = float(known.alphas_cumprod[previous] if previous >= 0 else known.final_alpha_cumprod)
    clean = now**0.5 * latents - (1 - now) ** 0.5 * velocity
    noise_there = now**0.5 * velocity + (1 - now) ** 0.5 * latents
    sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
    fresh = randn_tensor(
        latents.shape, generator=model.generator, device=latents.device, dtype=latents.dtype
    )
    direction = max(1 - then - sigma**2, 0.0) ** 0.5
    return then**0.5 * clean + direction * noise_there + sigma * fresh


@stepwise(
    "dpm",
    title="CogVideoX DPM",
    always_draws=True,
    is_scaled=True,
    uses_model_steps=True,
    media=("clips",),
)
def model_dpm(run: Sampling, x: Tensor) -> Tensor:
    """Sample with SDE-DPM-Solver++(2M) as in CogVideoX: arXiv 2408.06072."""
    model, dtype = model_of(run.denoiser, "dpm"), x.dtype
    before: Tensor | None = None
    for number, timestep in enumerate(model.timesteps):
        velocity = model.predict(x, timestep)
        last = model.timesteps[number - 1] if number else None
        x, before = model.noise_scheduler.step(
            velocity, before, timestep, last, x, generator=model.generator
        )
        x = x.to(dtype)
        run.report(number, x)
    return x
