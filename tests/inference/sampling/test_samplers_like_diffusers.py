"""Samplers against diffusers' schedulers, where these take the same steps.

A scheduler of diffusers is given A1111's sigmas and fractional timesteps ("injected"), where it has
no option that makes them.
"""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from inference.models.parametrization import Epsilon
from inference.sampling.noise import NoiseSource
from inference.sampling.registry import SAMPLERS, sampling_sigmas
from inference.sampling.schedules import SCHEDULES, ScheduleOptions

SHAPE = (4, 8, 8)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
LEVELS = Epsilon(torch.cumprod(1 - BETAS, 0).float())  # Stable Diffusion's
SETTINGS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "linspace",
}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def noise_at(x_scaled, timestep):
    """A model of noise that depends on the timestep, for variance-1 latents."""
    return x_scaled * (0.9 - 0.0004 * float(timestep)) + 0.1 * torch.sin(3 * x_scaled)


def by_noise(x, sigma):
    """The same model as a denoiser."""
    return x - noise_at(x / math.sqrt(1 + sigma**2), LEVELS.timestep(sigma)) * sigma


def ours(name, sigmas, eta=None):
    """(result, the noise source anew after its first draw, first noise)."""
    sampler = SAMPLERS[name]
    noise = NoiseSource([1, 2], SHAPE)
    start = noise.normal()
    scale = sampler.start_scale(sigmas[0])
    result = sampler.function(by_noise, start * scale, sigmas, noise, None, sampler.options(eta))
    again = NoiseSource([1, 2], SHAPE)
    again.normal()
    return result, again, start


def distance(mine, theirs):
    return ((mine - theirs).norm() / theirs.norm()).item()


def noise_scheduler(name, steps=20, sigmas=None, **options):
    scheduler = getattr(diffusers, name)(**{**SETTINGS, **options})
    scheduler.set_timesteps(steps)
    if sigmas is not None:
        scheduler.sigmas = torch.tensor(sigmas)
        scheduler.timesteps = torch.tensor([LEVELS.timestep(sigma) for sigma in sigmas[:-1]])
    return scheduler


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of KDPM2
@pytest.mark.parametrize(
    ("name", "schedule", "theirs", "options"),
    [
        ("Euler", "Uniform", "EulerDiscreteScheduler", {}),
        ("Euler", "Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("Euler", "Exponential", "EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
        ("Euler", "Beta", "EulerDiscreteScheduler", {"use_beta_sigmas": True}),
        ("Euler", "Simple", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("Euler a", "Uniform", "EulerAncestralDiscreteScheduler", {}),
        ("Heun", "Uniform", "HeunDiscreteScheduler", {}),
        ("Heun", "Karras", "HeunDiscreteScheduler", {"use_karras_sigmas": True}),
        ("LMS", "Uniform", "LMSDiscreteScheduler", {}),
        ("LMS", "Karras", "LMSDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM2", "Karras", "KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_samplers_agree_with_diffusers(name, schedule, theirs, options):
    scheduler = noise_scheduler(theirs, **options)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    x = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators])
    x = x * scheduler.sigmas[0]
    extra = {"generator": generators} if name == "Euler a" else {}
    for timestep in scheduler.timesteps:
        predicted = noise_at(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(predicted, timestep, x, **extra).prev_sample
    result, _, _ = ours(name, SCHEDULES[schedule](LEVELS, 20, ScheduleOptions()))
    assert distance(result, x) < (2e-5 if name == "DPM2" else 5e-6)  # its timesteps are rounded


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("SGM Uniform", "EulerDiscreteScheduler"),
        ("Align Your Steps", "EulerDiscreteScheduler"),
        ("KL Optimal", "EulerDiscreteScheduler"),
        ("Karras", "EulerAncestralDiscreteScheduler"),
    ],
)
def test_injected_sigmas_agree(schedule, theirs):
    sigmas = SCHEDULES[schedule](LEVELS, 20, ScheduleOptions())
    scheduler = noise_scheduler(theirs, sigmas=sigmas)
    name = "Euler a" if "Ancestral" in theirs else "Euler"
    result, _, _ = ours(name, sigmas)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    x = torch.stack([torch.randn(SHAPE, generator=one) for one in generators]) * sigmas[0]
    extra = {"generator": generators} if name == "Euler a" else {}
    for timestep in scheduler.timesteps:
        predicted = noise_at(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(predicted, timestep, x, **extra).prev_sample
    assert distance(result, x) < 2e-6


class RightSign(diffusers.DPMSolverMultistepScheduler):
    """With + 1/2 in the third term of the SDE's third order, where diffusers 0.42 has - 1/2."""

    def multistep_dpm_solver_third_order_update(self, model_output_list, *args, **kwargs):
        theirs = super().multistep_dpm_solver_third_order_update(model_output_list, *args, **kwargs)
        if self.config.algorithm_type != "sde-dpmsolver++":
            return theirs
        at = self.step_index
        alphas = [1 / (1 + sigma**2).sqrt() for sigma in self.sigmas]
        logs = [-sigma.log() for sigma in self.sigmas[at - 2 : at + 2]]
        before, last, length = (after - now for now, after in pairwise(logs))
        newest, middle, oldest = model_output_list[::-1]
        near, far = (newest - middle) * length / last, (middle - oldest) * length / before
        return theirs + alphas[at + 1] * (near - far) * length / (last + before)


@pytest.mark.parametrize(
    ("name", "schedule", "options", "eta"),
    [
        ("DPM++ 2M", "Karras", {}, None),
        ("DPM++ 2M", "Uniform", {}, None),
        ("DPM++ 2M", "SGM Uniform", {}, None),
        ("DPM++ 2M SDE", "Exponential", SDE, 1.0),
        ("DPM++ 2M SDE", "Karras", SDE, 1.0),
        ("DPM++ 2M SDE Heun", "Exponential", {**SDE, "solver_type": "heun"}, 1.0),
        (
            "DPM++ 3M SDE",
            "Exponential",
            {**SDE, "solver_type": "heun", "solver_order": 3, "lower_order_final": False},
            1.0,
        ),
        (
            "DPM++ 3M SDE",
            "Karras",
            {"solver_type": "heun", "solver_order": 3, "lower_order_final": False},
            0.0,
        ),
    ],
)
def test_dpmpp_agrees_with_diffusers(name, schedule, options, eta):
    sigmas = sampling_sigmas(LEVELS, name, schedule, 20)
    result, noise, start = ours(name, sigmas, eta)
    path = noise.brownian(sigmas[-2], sigmas[0])
    scheduler = RightSign(**{**SETTINGS, **options})
    scheduler.set_timesteps(20)
    scheduler.sigmas = torch.tensor(sigmas)
    scheduler.timesteps = torch.tensor([LEVELS.timestep(sigma) for sigma in sigmas[:-1]])
    x = start * (sigmas[0] / math.sqrt(1 + sigmas[0] ** 2))
    for timestep, sigma, after in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
        extra = torch.zeros_like(x) if after == 0 or not eta else path(sigma, after)
        step = scheduler.step(noise_at(x, timestep), timestep, x, variance_noise=extra)
        x = step.prev_sample
    assert distance(result, x) < 2e-6


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_agrees_with_diffusers(variant, order):
    sigmas = sampling_sigmas(LEVELS, "UniPC", "Automatic", 20)
    scheduler = noise_scheduler(
        "UniPCMultistepScheduler",
        sigmas=sigmas,
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="sigma_min",
    )
    noise = NoiseSource([1, 2], SHAPE)
    x = start = noise.normal()
    for timestep in scheduler.timesteps:
        x = scheduler.step(noise_at(x, timestep), timestep, x).prev_sample
    sampler = SAMPLERS["UniPC"]
    options = sampler.options(unipc_order=order, unipc_variant=variant)
    start = start * sampler.start_scale(sigmas[0])
    result = sampler.function(by_noise, start, sigmas, noise, None, options)
    assert distance(result, x) < 2e-6


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_agrees_with_diffusers(eta):
    scheduler = noise_scheduler("DDIMScheduler", **LEADING, clip_sample=False)
    result, noise, x = ours("DDIM", sampling_sigmas(LEVELS, "DDIM", "Automatic", 20), eta)
    for timestep in scheduler.timesteps[:-1]:  # A1111 leaves the last one out
        step = scheduler.step(
            noise_at(x, timestep), timestep, x, eta=eta, variance_noise=noise.normal()
        )
        x = step.prev_sample
    assert distance(result, x) < 2e-6


def test_plms_agrees_with_diffusers():
    scheduler = noise_scheduler("PNDMScheduler", **LEADING, skip_prk_steps=True)
    result, _, x = ours("PLMS", sampling_sigmas(LEVELS, "PLMS", "Automatic", 20))
    for timestep in scheduler.timesteps[:-1]:  # A1111 leaves the last one out
        x = scheduler.step(noise_at(x, timestep), timestep, x).prev_sample
    assert distance(result, x) < 2e-6
