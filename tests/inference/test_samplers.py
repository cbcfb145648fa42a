"""Samplers against data whose exact solution is known, and against diffusers' schedulers.

The data are normal: x0 ~ N(MEAN, SPREAD^2) in every element. Then the expected clean latent is
linear in x, and the way down from noise is known in closed form.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from inference import draw_config as config
from inference.conditions import Conditions
from inference.denoiser import Denoiser
from inference.noise import NoiseSource
from inference.samplers import SAMPLERS, resolve_schedule, sampling_sigmas
from inference.schedules import SCHEDULES, NoiseLevels

MEAN, SPREAD = 0.5, 0.8
SHAPE = (4, 8, 8)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
LEVELS = NoiseLevels(torch.cumprod(1 - BETAS, 0).float())  # Stable Diffusion's


def expected(x, sigma):
    return MEAN + (x - MEAN) * (SPREAD**2 / (SPREAD**2 + sigma**2))


def exact(x, sigma, last=0.0):
    """Where the probability flow leads from x at sigma."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + last**2) / (SPREAD**2 + sigma**2))


def run(name, schedule_type, steps, shape=SHAPE, seeds=(1, 2), eta=None, denoiser=expected):
    """(result, noise that it began with, sigmas)."""
    sampler = SAMPLERS[name]
    sigmas = sampling_sigmas(LEVELS, name, schedule_type, steps)
    noise = NoiseSource(seeds, shape)
    start = noise.normal() * sampler.start_scale(sigmas[0])
    eta = sampler.default_eta if eta is None else eta
    return sampler.function(denoiser, start, sigmas, noise, None, eta or 0.0), start, sigmas


def test_the_tables_are_the_recipes():
    assert tuple(SAMPLERS) == config.SAMPLERS
    assert ("Automatic", *SCHEDULES) == config.SCHEDULE_TYPES


# Published values of the web UI 1.10.1 for 20 steps.
@pytest.mark.parametrize(
    ("schedule", "second"),
    [("Uniform", 10.7468), ("Karras", 11.7254), ("Exponential", 10.5363), ("SGM Uniform", 10.9073)],
)
def test_sigmas_are_a1111s(schedule, second):
    sigmas = SCHEDULES[schedule](LEVELS, 20)
    assert len(sigmas) == 21
    assert sigmas[0] == pytest.approx(14.614642, rel=1e-6)
    assert sigmas[1] == pytest.approx(second, abs=5.1e-5)
    assert sigmas[-1] == 0
    if schedule == "SGM Uniform":
        assert sigmas[-2] == pytest.approx(0.22545, abs=5.1e-6)
        assert LEVELS.timestep(sigmas[-2]) == pytest.approx(49.95)
    else:
        assert sigmas[-2] == pytest.approx(0.0291675, abs=5.1e-8)
    assert all(high > low for high, low in pairwise(sigmas))


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_sigmas_equal_their_formulas(steps):
    low, high = LEVELS.sigma_min, LEVELS.sigma_max
    ramp = [i / max(1, steps - 1) for i in range(steps)]
    karras = [(high ** (1 / 7) + part * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for part in ramp]
    exponential = [high * (low / high) ** part for part in ramp]
    assert SCHEDULES["Karras"](LEVELS, steps)[:-1] == pytest.approx(karras, rel=1e-9)
    assert SCHEDULES["Exponential"](LEVELS, steps)[:-1] == pytest.approx(exponential, rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("Uniform", {}),
        ("Karras", {"use_karras_sigmas": True}),
        ("Exponential", {"use_exponential_sigmas": True}),
    ],
)
def test_sigmas_are_those_of_diffusers(schedule, options):
    noise_scheduler = diffusers_scheduler("EulerDiscreteScheduler", **options)
    noise_scheduler.set_timesteps(20)
    theirs = noise_scheduler.sigmas.tolist()
    assert SCHEDULES[schedule](LEVELS, 20) == pytest.approx(theirs, rel=2e-5)


def test_timesteps_and_sigmas_are_inverse():
    for timestep in (0.0, 0.3, 49.95, 500, 998.5, 999):
        assert LEVELS.timestep(LEVELS.sigma(timestep)) == pytest.approx(timestep, abs=1e-9)
    assert LEVELS.timestep(1e-3) == 0  # held within the model's range
    assert LEVELS.timestep(80) == 999


def test_model_without_signal_at_its_last_timestep_has_a_finite_sigma():
    levels = NoiseLevels(torch.linspace(0.999, 0, 1000))
    assert levels.sigma_max == pytest.approx(4518.8, rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "evaluations", "first", "last"),
    [(10, 9, 901, 101), (20, 19, 951, 51), (25, 24, 961, 41), (30, 30, 991, 34), (50, 49, 981, 21)],
)
def test_ddim_takes_the_timesteps_of_a1111(steps, evaluations, first, last):
    sigmas = sampling_sigmas(LEVELS, "DDIM", "Automatic", steps)
    timesteps = [LEVELS.timestep(sigma) for sigma in sigmas]
    assert len(sigmas) - 1 == evaluations
    assert timesteps[0] == pytest.approx(first)
    assert timesteps[-2] == pytest.approx(last)
    assert timesteps[-1] == pytest.approx(1)
    if steps == 20:
        assert sigmas[0] == pytest.approx(11.0283, abs=5.1e-5)


def test_automatic_is_what_a1111_tells():
    told = {name: resolve_schedule(name, "Automatic") for name in SAMPLERS}
    assert told["DPM++ 2M"] == "Karras"
    assert told["DPM++ 2M SDE"] == "Exponential"
    assert {told[name] for name in ("Euler", "Euler a", "Heun", "DDIM")} == {"Automatic"}
    assert resolve_schedule("DPM++ 2M", "Uniform") == "Uniform"
    assert sampling_sigmas(LEVELS, "Euler", "Automatic", 5) == SCHEDULES["Uniform"](LEVELS, 5)


@pytest.mark.parametrize("schedule", ["Karras", "Exponential"])
@pytest.mark.parametrize(("name", "order"), [("Euler", 1), ("Heun", 2), ("DPM++ 2M", 2)])
def test_errors_shrink_as_the_order_promises(name, order, schedule):
    errors = []
    for steps in (80, 160):
        sigmas = SCHEDULES[schedule](LEVELS, steps)[:-1]  # the last step is of order 1 in all
        noise = NoiseSource([1], SHAPE)
        start = noise.normal().double() * sigmas[0]
        result = SAMPLERS[name].function(expected, start, sigmas, noise)
        solution = exact(start, sigmas[0], sigmas[-1])
        errors.append((result - solution).abs().max().item())
    assert errors[1] < (0.03 if order == 1 else 0.001)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM++ 2M"])
def test_deterministic_samplers_reach_the_solution(name):
    result, start, sigmas = run(name, "Karras", 100)
    assert (result - exact(start, sigmas[0])).abs().max() < 0.05


def test_ddim_follows_the_flow_to_its_last_level():
    result, start, sigmas = run("DDIM", "Automatic", 500)
    last = sigmas[-1]
    solution = exact(start, sigmas[0], last) / math.sqrt(1 + last**2)
    assert (result - solution).abs().max() < 0.02
    with_zero, start, sigmas = run("DDIM", "Karras", 400)
    assert (with_zero - exact(start, sigmas[0])).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "eta"), [("Euler a", 1.0), ("DPM++ 2M SDE", 1.0), ("DPM++ 2M SDE", 0.5), ("DDIM", 1.0)]
)
def test_fresh_noise_keeps_the_distribution(name, eta):
    schedule = "Automatic" if name == "DDIM" else "Karras"
    steps = 50 if name == "DPM++ 2M SDE" else 250  # of order 2 and 1
    result, _, _ = run(name, schedule, steps, shape=(4, 32, 32), eta=eta)
    assert result.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert result.std().item() == pytest.approx(SPREAD, abs=0.03)


def test_without_fresh_noise_the_stochastic_samplers_are_the_others():
    assert torch.equal(
        run("DPM++ 2M SDE", "Karras", 10, eta=0.0)[0], run("DPM++ 2M", "Karras", 10)[0]
    )
    euler, ancestral = run("Euler", "Karras", 10)[0], run("Euler a", "Karras", 10, eta=0.0)[0]
    torch.testing.assert_close(euler, ancestral)


def diffusers_scheduler(name, **options):
    import diffusers

    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "linspace",
    }
    return getattr(diffusers, name)(**{**settings, **options})


def noise_at(x_scaled, timestep):
    """A model of noise that depends on the timestep, for variance-1 latents."""
    return x_scaled * (0.9 - 0.0004 * float(timestep)) + 0.1 * torch.sin(3 * x_scaled)


def by_noise(x, sigma):
    """The same model as a denoiser."""
    return x - noise_at(x / math.sqrt(1 + sigma**2), LEVELS.timestep(sigma)) * sigma


@pytest.mark.parametrize(
    ("name", "schedule", "theirs", "options"),
    [
        ("Euler", "Automatic", "EulerDiscreteScheduler", {}),
        ("Euler", "Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("Euler a", "Automatic", "EulerAncestralDiscreteScheduler", {}),
        ("Heun", "Automatic", "HeunDiscreteScheduler", {}),
        ("Heun", "Karras", "HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_samplers_agree_with_diffusers(name, schedule, theirs, options):
    noise_scheduler = diffusers_scheduler(theirs, **options)
    noise_scheduler.set_timesteps(20)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    x = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators])
    x = x * noise_scheduler.sigmas[0]
    extra = {"generator": generators} if name == "Euler a" else {}
    for timestep in noise_scheduler.timesteps:
        predicted = noise_at(noise_scheduler.scale_model_input(x, timestep), timestep)
        x = noise_scheduler.step(predicted, timestep, x, **extra).prev_sample
    result, _, _ = run(name, schedule, 20, denoiser=by_noise)
    assert ((result - x).norm() / x.norm()).item() < 2e-5


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_agrees_with_diffusers(eta):
    noise_scheduler = diffusers_scheduler(
        "DDIMScheduler",
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    noise_scheduler.set_timesteps(20)
    noise = NoiseSource([1, 2], SHAPE)
    x = noise.normal()
    for timestep in noise_scheduler.timesteps[:-1]:  # A1111 leaves the last one out
        step = noise_scheduler.step(
            noise_at(x, timestep), timestep, x, eta=eta, variance_noise=noise.normal()
        )
        x = step.prev_sample
    result, _, _ = run("DDIM", "Automatic", 20, eta=eta, denoiser=by_noise)
    assert ((result - x).norm() / x.norm()).item() < 2e-5


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_hears_of_every_step(name):
    heard = []
    sampler = SAMPLERS[name]
    sigmas = sampling_sigmas(LEVELS, name, "Karras", 4)
    noise = NoiseSource([0], SHAPE)
    x = noise.normal() * sigmas[0]
    sampler.function(expected, x, sigmas, noise, lambda *step: heard.append(step), 1.0)
    assert [number for number, _ in heard] == [0, 1, 2, 3]
    assert torch.equal(heard[0][1], expected(x, sigmas[0]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_neighbours(name):
    together = run(name, "Automatic", 8, seeds=(7, 8, 9))[0]
    alone = run(name, "Automatic", 8, seeds=(8,))[0]
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    assert torch.equal(together, run(name, "Automatic", 8, seeds=(7, 8, 9))[0])


def test_noise_is_that_of_a_generator_on_the_cpu():
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    noise = NoiseSource([5, 6], SHAPE)
    assert torch.equal(noise.normal()[0], first)
    assert torch.equal(noise.normal()[0], second)


def test_brownian_noise_is_a_path():
    way = NoiseSource([3], (4, 64, 64)).brownian(0.03, 14.6)
    parts = way(10.0, 6.0) * math.sqrt(4), way(6.0, 3.0) * math.sqrt(3)
    torch.testing.assert_close(sum(parts), way(10.0, 3.0) * math.sqrt(7), rtol=0, atol=1e-4)
    assert way(10.0, 6.0).std().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(way(6.0, 10.0), -way(10.0, 6.0))
    other = NoiseSource([4, 3], (4, 64, 64)).brownian(0.03, 14.6)(10.0, 6.0)
    assert torch.equal(other[1:], way(10.0, 6.0))


NEUTRAL = Conditions(torch.zeros(2, 7, 3))


def analytic_base(prediction_type):
    """A base model that knows the normal data, and predicts noise or velocity.

    Its prompt states are added to the clean latent that it expects.
    """

    def predict(seen, timesteps, conditions):
        states = conditions.states
        assert seen.dtype == states.dtype
        sigma = LEVELS.sigma(timesteps[0].item())
        scale = 1 / math.sqrt(1 + sigma**2)
        x = seen / scale
        clean = expected(x, sigma) + states.mean((1, 2))[:, None, None, None]
        noise = (x - clean) / sigma
        return noise if prediction_type == "epsilon" else noise * scale - clean * sigma * scale

    return SimpleNamespace(
        predict=predict,
        prediction_type=prediction_type,
        alphas_cumprod=torch.cumprod(1 - BETAS, 0).float(),
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma", [0.03, 0.4, 3.0, 14.0])
def test_denoiser_understands_noise_and_velocity(prediction_type, sigma):
    x = NoiseSource([0, 1], SHAPE).normal() * sigma + MEAN
    denoiser = Denoiser(analytic_base(prediction_type), NEUTRAL)
    torch.testing.assert_close(denoiser(x, sigma), expected(x, sigma), rtol=0, atol=2e-5)


def test_velocity_and_noise_draw_the_same():
    results = [
        run("DPM++ 2M", "Karras", 20, denoiser=Denoiser(analytic_base(kind), NEUTRAL))
        for kind in ("epsilon", "v_prediction")
    ]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 7.0])
def test_guidance_leads_away_from_the_negative_prompt(cfg_scale):
    positive, negative = (Conditions(torch.full((2, 7, 3), value)) for value in (0.2, -0.1))
    x = NoiseSource([0, 1], SHAPE).normal()
    base = analytic_base("epsilon")
    denoised = Denoiser(base, positive, negative, cfg_scale)(x, 1.0)
    torch.testing.assert_close(denoised, expected(x, 1.0) - 0.1 + 0.3 * cfg_scale)


def test_without_guidance_the_negative_prompt_costs_nothing():
    base, seen = analytic_base("epsilon"), []
    predict = base.predict
    base.predict = lambda x, *rest: seen.append(len(x)) or predict(x, *rest)
    states = NEUTRAL
    x = NoiseSource([0, 1], SHAPE).normal()
    Denoiser(base, states, states, 1.0)(x, 1.0)
    Denoiser(base, states, states, 2.0)(x, 1.0)
    assert seen == [2, 4]
    with pytest.raises(ValueError, match="needs negative prompts"):
        Denoiser(base, states, None, 2.0)


def test_model_is_asked_in_its_own_number_format():
    states = NEUTRAL.to(torch.bfloat16)
    x = NoiseSource([0, 1], SHAPE).normal()
    denoised = Denoiser(analytic_base("epsilon"), states)(x, 1.0)
    assert denoised.dtype == torch.float32
