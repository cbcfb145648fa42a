"""Rectified flow against known numbers, in the loss and in every sampler."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference.images.denoiser import Denoiser, Guidance
from inference.models import Conditions
from inference.sampling import (
    SAMPLERS,
    SCHEDULES,
    Img2ImgRun,
    NoiseSource,
    ScheduleOptions,
    img2img_sigmas,
    samplers_of,
    sampling_sigmas,
)
from tests.toy_family.dit import ToyDiT
from tests.toy_family.rectified_flow import RectifiedFlow
from train.config import LossConfig
from train.losses import Denoising

FLOW = RectifiedFlow()
SHAPE = (4, 4, 4)
SPREAD = 0.7
CLEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
NEUTRAL = Conditions(torch.zeros(2, 7, 3))


QUICK_SAMPLERS = (
    "Euler",
    "Euler a",
    "Heun",
    "DPM2 a",
    "DPM++ 2M",
    "DPM++ SDE",
    "LMS",
    "UniPC",
    "DDIM",
)
"""One of each kind; the others are slow tests."""


class Point:
    """A model of one picture: v = noise - CLEAN, exactly, so that all paths are straight."""

    parametrization = FLOW

    def __init__(self):
        self.seen = []

    def predict(self, seen, timesteps, conditions):
        time = FLOW.times(timesteps, seen)
        self.seen.append((timesteps[0].item(), seen))
        return (seen - CLEAN) / time


class Normal:
    """A model of normal data of spread SPREAD around 0, exactly."""

    parametrization = FLOW

    def predict(self, seen, timesteps, conditions):
        time = FLOW.times(timesteps, seen)
        variance = (1 - time) ** 2 * SPREAD**2 + time**2
        clean = seen * (1 - time) * SPREAD**2 / variance
        return (seen - clean) / time


def draw(name, base, steps, schedule="Automatic"):
    """(result, noise that it began with, sigmas)."""
    sampler = SAMPLERS[name]
    levels = sampler.levels(FLOW)
    sigmas = sampling_sigmas(levels, name, schedule, steps)
    source = NoiseSource([1, 2], SHAPE)
    noise = source.normal()
    x = noise * sampler.start_scale(sigmas[0], levels.scale)
    guidance = Guidance(keeps_uncond=sampler.needs_uncond)
    denoiser = Denoiser(base, NEUTRAL, NEUTRAL, levels=levels, guidance=guidance)
    options = sampler.options(timestep_of=levels.timestep, scale_of=levels.scale)
    return sampler.function(denoiser, x, sigmas, source, None, options), noise, sigmas


def test_known_numbers():
    latents, noise = torch.full((2, 1, 2), 3.0), torch.full((2, 1, 2), 1.0)
    timesteps = torch.tensor([249, 999])  # t = 1/4 and 1
    assert FLOW.add_noise(latents, noise, timesteps)[:, 0, 0].tolist() == [2.5, 1.0]
    assert FLOW.target(latents, noise, timesteps).unique().tolist() == [-2.0]
    assert FLOW.sigma(749) == pytest.approx(3)  # t = 3/4
    assert FLOW.timestep(3) == pytest.approx(749)
    assert FLOW.scale(3) == 4
    assert (FLOW.sigma_min, FLOW.sigma_max) == pytest.approx((1 / 999, 9999))
    x = 3.0 + FLOW.sigma(749) * torch.ones(1)
    assert FLOW.denoised(x, torch.full((1,), -2.0), 3.0).tolist() == [3.0]


def test_shift_leans_towards_noise():
    """SD3's 3: half way becomes t = 3/4, and back."""
    shifted = RectifiedFlow(shift=3.0)
    assert shifted.sigma(499) == pytest.approx(3)
    assert shifted.timestep(3) == pytest.approx(499)
    x = torch.zeros(1, 1)
    assert shifted.times(torch.tensor([499]), x).item() == pytest.approx(0.75)
    for timestep in (0, 10, 500.5, 990):
        assert shifted.timestep(shifted.sigma(timestep)) == pytest.approx(timestep, abs=1e-6)
    assert shifted.timestep(1e-9) == 0
    assert shifted.timestep(1e9) == pytest.approx(999, abs=1e-4)
    assert np.all(np.diff(shifted.log_sigmas) > 0)


def test_what_samplers_see_is_what_the_loss_sees():
    noise = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([10, 500, 900])
    seen = FLOW.add_noise(CLEAN.expand(3, *SHAPE), noise, timesteps)
    target = FLOW.target(CLEAN, noise, timesteps)
    for row, timestep in enumerate(timesteps.tolist()):
        sigma = FLOW.sigma(timestep)
        x = CLEAN + sigma * noise[row]
        torch.testing.assert_close(x / FLOW.scale(sigma), seen[row])
        torch.testing.assert_close(FLOW.denoised(x, target[row], sigma), CLEAN)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_euler_is_exact_on_straight_paths(steps):
    base = Point()
    result, noise, sigmas = draw("Euler", base, steps)
    torch.testing.assert_close(result, CLEAN.expand_as(result), rtol=0, atol=2e-3)
    time = sigmas[0] / (1 + sigmas[0])
    (timestep, seen), *_ = base.seen
    assert timestep == pytest.approx(FLOW.timestep(sigmas[0]))
    torch.testing.assert_close(seen, noise * time)


def test_euler_by_sigma_is_euler_along_the_flow():
    """x_t + (t' - t) v, as flow models are drawn elsewhere, from the same noise."""
    result, noise, sigmas = draw("Euler", Normal(), 12, "Simple")
    times = [sigma / (1 + sigma) for sigma in sigmas]
    x = noise * times[0]
    for time, after in pairwise(times):
        timestep = torch.tensor([time * 1000 - 1]).expand(2)
        x = x + (after - time) * Normal().predict(x, timestep, NEUTRAL)
    torch.testing.assert_close(result, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        one if one in QUICK_SAMPLERS else pytest.param(one, marks=pytest.mark.slow)
        for one in samplers_of("pictures")
    ],
)
def test_every_sampler_draws_with_a_flow(name):
    steps = 60 if SAMPLERS[name].default_eta is None else 300
    result, noise, _ = draw(name, Normal(), steps, "Karras")
    assert result.isfinite().all()
    if SAMPLERS[name].default_eta or SAMPLERS[name].always_draws:
        assert 0.4 < result.std().item() / SPREAD < 1.6
    else:
        torch.testing.assert_close(result, noise * SPREAD, rtol=0.1, atol=0.1)


def test_img2img_begins_at_its_time():
    run = img2img_sigmas(FLOW, "Euler", "Uniform", 20, 0.5)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert isinstance(run, Img2ImgRun)
    start = run.start(CLEAN, noise)
    timestep = torch.tensor([FLOW.timestep(run.sigmas[0])])
    torch.testing.assert_close(
        start / FLOW.scale(run.sigmas[0]), FLOW.add_noise(CLEAN[None], noise[None], timestep)[0]
    )
    assert 400 < timestep.item() < 600
    scaled = img2img_sigmas(FLOW, "DDIM", "Automatic", 20, 0.5)
    ratio = FLOW.scale(scaled.sigmas[0]) / FLOW.scale(scaled.noise_sigma)
    begun = scaled.start(CLEAN, noise)
    torch.testing.assert_close(begun, (CLEAN + noise * scaled.noise_sigma) * ratio)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_falls_within_the_range(name):
    sigmas = SCHEDULES[name](FLOW, 8, ScheduleOptions())
    assert all(after < sigma for sigma, after in pairwise(sigmas))
    assert sigmas[0] <= FLOW.sigma_max * (1 + 1e-9)


def test_the_loss_is_the_parametrizations():
    """The usual loss on a model with a flow: plain mean squared error of noise - x0."""
    target = torch.full((2, 4, 4), 0.5)
    base = SimpleNamespace(
        parametrization=FLOW,
        device=torch.device("cpu"),
        encode_prompts=lambda prompts: NEUTRAL,
        predict=lambda noisy, timesteps, states, sizes: noisy * 0,
    )
    loss = Denoising(base, LossConfig(), "deterministic", 5)  # type: ignore[arg-type]
    batch = {"positions": [3], "latents": target[None], "prompts": [""]}
    noise = loss.noise([3], target[None])
    expected = (noise - target).square().mean()
    assert loss.loss(batch).item() == pytest.approx(expected.item())  # type: ignore[arg-type]
    snr = Denoising(base, LossConfig(weighting="min_snr"), "deterministic", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_snr is not of rectified flow"):
        snr.loss(batch)  # type: ignore[arg-type]


def test_a_transformer_learns_one_picture_and_draws_it():
    """150 steps of the loss, then Euler: closer to the picture than any noise is."""
    torch.manual_seed(0)
    dit = ToyDiT(text_width=3)
    optimizer = torch.optim.Adam(dit.parameters(), 3e-3)
    source = torch.Generator().manual_seed(1)
    clean = CLEAN.expand(16, *SHAPE)
    for _ in range(150):
        timesteps = FLOW.sample_timesteps(torch.randint(0, 1000, (16,), generator=source))
        noise = torch.randn(clean.shape, generator=source)
        seen = FLOW.add_noise(clean, noise, timesteps)
        predicted = dit(seen, timesteps, torch.zeros(16, 7, 3))
        errors = (predicted - FLOW.target(clean, noise, timesteps)).square().flatten(1).mean(1)
        loss = (errors * FLOW.loss_weight(timesteps, "uniform", 5.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    base = SimpleNamespace(
        parametrization=FLOW,
        predict=lambda seen, timesteps, conditions: dit(seen, timesteps, conditions.states),
    )
    with torch.no_grad():
        result, noise, _ = draw("Euler", base, 10)
    error = (result - CLEAN).square().mean()
    assert error < 0.2 * (noise - CLEAN).square().mean()
