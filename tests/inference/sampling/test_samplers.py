"""Samplers against data whose exact solution is known, and what belongs to their names.

The data are normal: x0 ~ N(MEAN, SPREAD^2) in every element. Then the expected clean latent is
linear in x, and the way down from noise is known in closed form.
"""

import math
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference.images.denoiser import Denoiser, Guidance
from inference.models.conditions import Conditions
from inference.models.parametrization import Epsilon, discrete_vp
from inference.runtime.errors import InputError
from inference.sampling import entries
from inference.sampling.base import PLAIN, SamplerOptions
from inference.sampling.entries import OtherOptions, sampler
from inference.sampling.img2img import img2img_sigmas, img2img_steps
from inference.sampling.noise import NoiseSource
from inference.sampling.registry import SAMPLERS, find_sampler, samplers_of, sampling_sigmas
from inference.sampling.schedules import SCHEDULES, ScheduleOptions
from inference.sampling.second_order import restart_steps

MEAN, SPREAD = 0.5, 0.8
SHAPE = (4, 8, 8)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0).float()
LEVELS = Epsilon(ALPHAS)  # Stable Diffusion's


class Expected:
    """The denoiser of the data; it knows no negative prompts, and counts how often it is asked."""

    def __init__(self):
        self.last_uncond = None
        self.asked = []

    def __call__(self, x, sigma):
        self.asked.append(sigma)
        self.last_uncond = MEAN + (x - MEAN) * (SPREAD**2 / (SPREAD**2 + sigma**2))
        return self.last_uncond


expected = Expected()


def exact(x, sigma, last=0.0):
    """Where the probability flow leads from x at sigma."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + last**2) / (SPREAD**2 + sigma**2))


def run(name, schedule_type, steps, shape=SHAPE, seeds=(1, 2), eta=None, denoiser: Any = expected):
    """(result, noise that it began with, sigmas)."""
    sampler = SAMPLERS[name]
    levels = sampler.levels(LEVELS)
    sigmas = sampling_sigmas(levels, name, schedule_type, steps)
    noise = NoiseSource(seeds, shape)
    start = noise.normal() * sampler.start_scale(sigmas[0])
    options = sampler.options(eta, timestep_of=levels.timestep)
    return sampler.function(denoiser, start, sigmas, noise, None, options), start, sigmas


@pytest.mark.parametrize("schedule", ["Karras", "Exponential"])
@pytest.mark.parametrize(("name", "order"), [("Euler", 1), ("Heun", 2), ("DPM++ 2M", 2)])
def test_errors_shrink_as_the_order_promises(name, order, schedule):
    errors = []
    for steps in (80, 160):
        # without the last step, which is of order 1 in all
        sigmas = SCHEDULES[schedule](LEVELS, steps, ScheduleOptions())[:-1]
        noise = NoiseSource([1], SHAPE)
        start = noise.normal().double() * sigmas[0]
        result = SAMPLERS[name].function(expected, start, sigmas, noise)
        solution = exact(start, sigmas[0], sigmas[-1])
        errors.append((result - solution).abs().max().item())
    assert errors[1] < (0.03 if order == 1 else 0.001)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


FLOW = [name for name in samplers_of("pictures") if name not in ("Restart", "LCM")]


@pytest.mark.parametrize("name", FLOW)
def test_without_fresh_noise_samplers_reach_the_solution(name):
    result, start, sigmas = run(name, "Karras", 100, eta=0.0)
    last = sigmas[-2] if SAMPLERS[name].takes_range_only else 0.0
    worst = 0.15 if name == "DPM adaptive" else 0.05  # a tolerance of 5 %
    assert (result - exact(start, sigmas[0], last)).abs().max() < worst


@pytest.mark.parametrize(("name", "worst"), [("DDIM", 0.02), ("PLMS", 0.002), ("UniPC", 0.002)])
def test_samplers_by_timesteps_follow_the_flow_to_their_last_level(name, worst):
    result, start, sigmas = run(name, "Automatic", 500)
    last = sigmas[-1]
    solution = exact(start, sigmas[0], last) / math.sqrt(1 + last**2)
    assert last > 0
    assert (result - solution).abs().max() < worst
    with_zero, start, sigmas = run(name, "Karras", 400)
    assert (with_zero - exact(start, sigmas[0])).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "eta", "steps"),
    [
        ("Euler a", 1.0, 250),
        ("DPM2 a", 1.0, 100),
        ("DPM++ 2S a", 1.0, 100),
        ("DPM++ SDE", 1.0, 30),
        ("DPM++ SDE", 0.5, 30),
        ("DPM++ 2M SDE", 1.0, 40),
        ("DPM++ 2M SDE", 0.5, 40),
        ("DPM++ 2M SDE Heun", 1.0, 40),
        ("DPM++ 3M SDE", 1.0, 40),
        ("DPM++ 3M SDE", 0.5, 40),
        ("DPM fast", 1.0, 200),
        ("DPM adaptive", 1.0, 20),
        ("Restart", None, 50),
        ("DDIM", 1.0, 250),
        ("DDIM CFG++", 1.0, 250),
    ],
)
def test_fresh_noise_keeps_the_distribution(name, eta, steps):
    schedule = "Automatic" if name.startswith("DDIM") else "Karras"
    result, _, _ = run(name, schedule, steps, shape=(4, 24, 24), eta=eta)
    assert result.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert result.std().item() == pytest.approx(SPREAD, abs=0.04)


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2"])
def test_churn_keeps_the_distribution(name):
    sigmas = SCHEDULES["Karras"](LEVELS, 250, ScheduleOptions())
    noise = NoiseSource([1, 2], (4, 24, 24))
    start = noise.normal() * sigmas[0]
    options = SamplerOptions(s_churn=40, s_tmin=0.05, s_tmax=10)
    asked = Expected()
    result = SAMPLERS[name].function(asked, start, sigmas, noise, None, options)
    assert result.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert result.std().item() == pytest.approx(SPREAD, abs=0.06 if name == "Euler" else 0.04)
    raised = [sigma * 1.16 for sigma in sigmas if 0.05 <= sigma <= 10]
    assert set(asked.asked) & set(raised) == set(raised)
    assert set(asked.asked) & {sigma for sigma in sigmas if sigma > 10}


def test_churn_is_karras_algorithm_2():
    options = SamplerOptions(s_churn=100, s_noise=1.5, s_tmax=0)  # 0 is infinite
    noise, again = NoiseSource([1], SHAPE), NoiseSource([1], SHAPE)
    x = torch.zeros(1, *SHAPE)
    result = SAMPLERS["Euler"].function(expected, x, [2.0, 1.0], noise, None, options)
    raised = 2 * math.sqrt(2)  # more than this is never added
    x = again.normal() * 1.5 * math.sqrt(raised**2 - 4)
    x = x + (x - expected(x, raised)) * (1 - raised) / raised
    torch.testing.assert_close(result, x)


def test_churn_draws_in_every_step():
    options = SamplerOptions(s_churn=10, s_tmin=5.0)
    noise, again = NoiseSource([1], SHAPE), NoiseSource([1], SHAPE)
    x = torch.zeros(1, *SHAPE)
    SAMPLERS["Euler"].function(expected, x, [10.0, 4.0, 2.0, 0.0], noise, None, options)
    drawn = [again.normal() for _ in range(4)]
    assert torch.equal(noise.normal(), drawn[3])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("DPM++ 2M SDE", "DPM++ 2M"),
        ("Euler a", "Euler"),
        ("DPM2 a", "DPM2"),
        ("DPM++ SDE", "DPM++ 2S a"),
        ("DDIM CFG++", "DDIM"),
    ],
)
def test_without_fresh_noise_the_stochastic_samplers_are_the_others(name, other):
    mine, theirs = (run(one, "Karras", 10, eta=0.0)[0] for one in (name, other))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    if other == "DPM++ 2M":
        assert torch.equal(mine, theirs)


def test_cfgpp_puts_back_the_noise_of_the_negative_prompt():
    class Guided(Expected):
        def __call__(self, x, sigma):
            self.last_uncond = super().__call__(x, sigma) - 0.3
            return self.last_uncond + 0.5

    sigmas = sampling_sigmas(LEVELS, "DDIM CFG++", "Automatic", 4)
    start = NoiseSource([1], SHAPE).normal().double()
    options = SAMPLERS["DDIM CFG++"].options()
    alphas = ALPHAS.double()[[round(LEVELS.timestep(sigma)) for sigma in sigmas]]
    result = SAMPLERS["DDIM CFG++"].function(
        Guided(), start * sigmas[0], sigmas, NoiseSource([1], SHAPE), None, options
    )
    x = start * sigmas[0] * alphas[0].sqrt()  # the paper's algorithm, for variance 1
    denoiser = Guided()
    for now, after in pairwise(alphas):
        sigma = math.sqrt((1 - now) / now)
        clean = denoiser(x / now.sqrt(), sigma)
        noise = (x - now.sqrt() * denoiser.last_uncond) / (1 - now).sqrt()
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    torch.testing.assert_close(result, x, rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match="last_uncond"):
        SAMPLERS["DDIM CFG++"].function(
            lambda x, sigma: x, start, sigmas, NoiseSource([1], SHAPE), None, options
        )


def test_lcm_is_its_formula():
    levels = SAMPLERS["LCM"].levels(LEVELS)
    sigmas = sampling_sigmas(levels, "LCM", "Automatic", 4)
    noise = NoiseSource([1], SHAPE)
    x = noise.normal() * sigmas[0]
    for timestep, sigma, after in zip((999, 679, 339, 19), sigmas, sigmas[1:], strict=False):
        skip, out = 0.25 / (100 * timestep**2 + 0.25), 10 * timestep
        x = out / math.sqrt(out**2 + 0.25) * expected(x, sigma) + skip * x
        x = x + (noise.normal() * after if after else 0)
    torch.testing.assert_close(run("LCM", "Automatic", 4, seeds=[1])[0], x)


@pytest.mark.parametrize(
    ("steps", "restarts", "length"), [(10, 0, 0), (19, 0, 0), (20, 1, 9), (35, 1, 9), (40, 2, 10)]
)
def test_restart_goes_back_up(steps, restarts, length):
    sigmas = sampling_sigmas(LEVELS, "Restart", "Automatic", steps)
    taken = restart_steps(sigmas)
    assert len(taken) == steps
    assert (taken[0][0], taken[-1][1]) == (sigmas[0], 0)
    jumps = [
        (before[1], after[0])
        for before, after in pairwise(taken)
        if before[1] != pytest.approx(after[0])
    ]
    assert len(jumps) == restarts
    assert all(0.05 < low < 0.2 and 1 < high < 3.2 for low, high in jumps)
    assert len(set(jumps)) <= 1
    back = [step for step in taken if restarts and jumps[0][0] <= step[1] < step[0] <= jumps[0][1]]
    assert len(set(back)) >= length


EVALUATIONS = {
    "Heun": 39,
    "DPM2": 39,
    "DPM2 a": 39,
    "DPM++ SDE": 39,
    "DPM++ 2S a": 39,
    "Restart": 39,
    "DDIM": 19,
    "DDIM CFG++": 19,
}


@pytest.mark.parametrize("name", sorted(samplers_of("pictures").keys() - {"DPM adaptive"}))
def test_samplers_ask_as_often_as_a1111s(name):
    asked = Expected()
    run(name, "Automatic", 20, denoiser=asked)
    assert len(asked.asked) == EVALUATIONS.get(name, 20)
    assert SAMPLERS[name].is_second_order == (len(asked.asked) == 39)


@pytest.mark.parametrize("evaluations", range(1, 10))
def test_dpm_fast_asks_once_a_step(evaluations):
    asked = Expected()
    run("DPM fast", "Automatic", evaluations, denoiser=asked)
    assert len(asked.asked) == evaluations


@pytest.mark.parametrize("name", samplers_of("pictures"))
def test_callback_hears_of_every_step(name):
    heard = []
    sampler = SAMPLERS[name]
    sigmas = SCHEDULES["Karras"](LEVELS, 4, ScheduleOptions())
    noise = NoiseSource([0], SHAPE)
    x = noise.normal() * sigmas[0]
    options = sampler.options(1.0)
    sampler.function(expected, x, sigmas, noise, lambda *step: heard.append(step), options)
    numbers = [number for number, _ in heard]
    assert numbers == list(range(len(numbers)))
    if name == "DPM fast":
        assert len(numbers) == 2  # of order 3 and 1
    elif name != "DPM adaptive":
        assert len(numbers) == 4
    torch.testing.assert_close(heard[0][1], expected(x, sigmas[0]))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", samplers_of("pictures"))
def test_few_steps_are_enough(name, steps):
    for schedule in ("Automatic", "KL Optimal", "Simple"):
        result, _, _ = run(name, schedule, steps)
        assert result.isfinite().all()


@pytest.mark.parametrize("name", samplers_of("pictures"))
def test_a_picture_does_not_depend_on_its_neighbours(name):
    together = run(name, "Automatic", 8, seeds=(7, 8, 9))[0]
    alone = run(name, "Automatic", 8, seeds=(8,))[0]
    difference = (together[1:2] - alone).abs().max()
    assert (difference > 1e-5) == SAMPLERS[name].couples_batch
    assert torch.equal(together, run(name, "Automatic", 8, seeds=(7, 8, 9))[0])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Euler a", ("Euler a", None)),
        ("euler A", ("Euler a", None)),
        ("k_euler_a", ("Euler a", None)),
        ("k_euler_ancestral", ("Euler a", None)),
        ("k_dpmpp_2m", ("DPM++ 2M", None)),
        ("k_dpmpp_2m_ka", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M SDE Karras", ("DPM++ 2M SDE", "Karras")),
        ("DPM++ 2M SDE Exponential", ("DPM++ 2M SDE", "Exponential")),
        ("DPM++ 2M SDE Heun", ("DPM++ 2M SDE Heun", None)),
        ("dpm++ 2m sde heun karras", ("DPM++ 2M SDE Heun", "Karras")),
        ("Euler SGM Uniform", ("Euler", "SGM Uniform")),
        ("LMS Karras", ("LMS", "Karras")),
        ("Euler DDIM", ("Euler", "DDIM")),
        ("ddim", ("DDIM", None)),
        ("DDIM CFG++", ("DDIM CFG++", None)),
        ("unipc", ("UniPC", None)),
        ("k_lcm", ("LCM", None)),
        ("restart", ("Restart", None)),
    ],
)
def test_samplers_are_found_by_their_names(name, found):
    assert find_sampler(name) == found


def test_unknown_samplers_are_refused():
    with pytest.raises(InputError, match="nearest is DPM\\+\\+ 2M"):
        find_sampler("DPM+ 2M")
    with pytest.raises(InputError, match="sampler: expected one of Euler, "):
        find_sampler("Karras")


def test_samplers_take_every_option_besides_eta():
    others = {field.name for field in fields(SamplerOptions)} - {"eta"}
    assert set(OtherOptions.__annotations__) == others
    assert SAMPLERS["Euler a"].options(s_noise=0.5) == SamplerOptions(eta=1.0, s_noise=0.5)


@pytest.mark.parametrize(
    "options",
    [{"eta": -1.0}, {"s_noise": float("nan")}, {"unipc_order": 0}, {"unipc_variant": "bh3"}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SamplerOptions(**options)


@pytest.mark.parametrize(
    ("strength", "exact_steps", "expected"),
    [
        (0.75, False, (20, 15)),
        (0.5, False, (20, 10)),
        (1.0, False, (20, 19)),
        (0.0, False, (20, 0)),
        (0.75, True, (26, 19)),
        (1.0, True, (20, 19)),
    ],
)
def test_steps_of_img2img_are_a1111s(strength, exact_steps, expected):
    assert img2img_steps(20, strength, exact_steps) == expected


def test_img2img_goes_the_last_steps():
    full = sampling_sigmas(LEVELS, "DPM++ 2M SDE", "Automatic", 20)
    part = img2img_sigmas(LEVELS, "DPM++ 2M SDE", "Automatic", 20, 0.75)
    assert part.sigmas == full[4:]
    assert part.noise_sigma == part.sigmas[0]
    assert part.brownian_range == (full[-2], full[0])
    longer = img2img_sigmas(LEVELS, "Euler", "Karras", 20, 0.75, exact_steps=True)
    assert longer.sigmas == SCHEDULES["Karras"](LEVELS, 26, ScheduleOptions())[6:]
    assert img2img_sigmas(LEVELS, "Euler", "Karras", 20, 0.0).sigmas[1:] == [0.0]
    discarding = img2img_sigmas(LEVELS, "DPM2", "Automatic", 20, 0.75)
    assert discarding.sigmas == sampling_sigmas(LEVELS, "DPM2", "Automatic", 20)[4:]


def test_img2img_of_range_samplers_takes_the_schedules_ends():
    part = img2img_sigmas(LEVELS, "DPM fast", "SGM Uniform", 20, 0.5)
    assert part.sigmas == SCHEDULES["SGM Uniform"](LEVELS, 20, ScheduleOptions())[9:]
    asked = Expected()
    noise = NoiseSource([1], SHAPE)
    SAMPLERS["DPM fast"].function(asked, noise.normal(), part.sigmas, noise)
    assert asked.asked[0] == pytest.approx(part.sigmas[0])
    assert len(asked.asked) == 11
    assert min(asked.asked) > part.sigmas[-2]


@pytest.mark.parametrize("name", ["DDIM", "DDIM CFG++", "PLMS"])
def test_img2img_by_timesteps_starts_below_its_noise(name):
    part = img2img_sigmas(LEVELS, name, "Automatic", 20, 0.75)
    timesteps = [round(LEVELS.timestep(sigma), 6) for sigma in part.sigmas]
    assert timesteps == list(range(701, 0, -50))  # 14 evaluations
    assert LEVELS.timestep(part.noise_sigma) == pytest.approx(751)
    latent, noise = torch.full((1, *SHAPE), 2.0), NoiseSource([1], SHAPE).normal()
    share = ALPHAS[751].item()  # A1111: latents of variance 1
    seen = math.sqrt(share) * latent + math.sqrt(1 - share) * noise
    start = part.start(latent, noise) / math.sqrt(1 + part.sigmas[0] ** 2)
    torch.testing.assert_close(start, seen)
    tiny = img2img_sigmas(LEVELS, name, "Automatic", 20, 0.01)
    assert len(tiny.sigmas) == 1  # nothing to do
    with_type = img2img_sigmas(LEVELS, name, "Karras", 20, 0.75)
    assert with_type.sigmas == SCHEDULES["Karras"](LEVELS, 20, ScheduleOptions())[4:]
    assert with_type.noise_sigma == with_type.sigmas[0]


def test_img2img_of_unipc_has_even_steps():
    part = img2img_sigmas(LEVELS, "UniPC", "Automatic", 20, 0.75)
    timesteps = [LEVELS.timestep(sigma) for sigma in part.sigmas]
    assert timesteps == pytest.approx([701 * (1 - i / 15) for i in range(16)])
    assert LEVELS.timestep(part.noise_sigma) == pytest.approx(751)


def test_extra_noise_is_added_beside():
    part = img2img_sigmas(LEVELS, "Euler", "Karras", 20, 0.5)
    latent, noise = torch.zeros(1, *SHAPE), NoiseSource([1], SHAPE).normal()
    start = part.start(latent, noise, extra_noise=0.1)
    torch.testing.assert_close(start, noise * (part.sigmas[0] + 0.1))


def test_impossible_strengths_are_refused():
    with pytest.raises(InputError, match="denoising_strength: must lie in 0 … 1"):
        img2img_steps(20, 1.5)
    with pytest.raises(InputError, match="above 0 where the steps shall be exact"):
        img2img_steps(20, 0.0, exact_steps=True)


NEUTRAL = Conditions(torch.zeros(2, 7, 3))


def analytic_base(prediction_type) -> Any:
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
        parametrization=discrete_vp(ALPHAS, prediction_type),
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
    Denoiser(base, states, states, 1.0, guidance=Guidance(keeps_uncond=True))(x, 1.0)
    assert seen == [2, 4, 4]
    with pytest.raises(ValueError, match="needs negative prompts"):
        Denoiser(base, states, None, 2.0)


def test_model_is_asked_in_its_own_number_format():
    states = NEUTRAL.to(torch.bfloat16)
    x = NoiseSource([0, 1], SHAPE).normal()
    denoised = Denoiser(analytic_base("epsilon"), states)(x, 1.0)
    assert denoised.dtype == torch.float32


def test_denoiser_tells_what_it_expects_for_the_negative_prompt():
    positive, negative = (Conditions(torch.full((2, 7, 3), value)) for value in (0.2, -0.1))
    x = NoiseSource([0, 1], SHAPE).normal()
    guidance = Guidance(keeps_uncond=True)
    denoiser = Denoiser(analytic_base("epsilon"), positive, negative, 1.0, guidance=guidance)
    torch.testing.assert_close(denoiser(x, 1.0), expected(x, 1.0) + 0.2)
    torch.testing.assert_close(denoiser.last_uncond, expected(x, 1.0) - 0.1)


def test_denoiser_asks_at_the_samplers_timesteps():
    base, seen = analytic_base("epsilon"), []
    base.predict = lambda x, timesteps, conditions: seen.append(timesteps[0].item()) or x
    levels = SAMPLERS["LCM"].levels(LEVELS)
    denoiser = Denoiser(base, NEUTRAL, levels=levels)
    run("LCM", "Automatic", 4, denoiser=denoiser)
    assert seen == [999, 679, 339, 19]
    seen.clear()
    run("DDIM", "Automatic", 20, denoiser=Denoiser(base, NEUTRAL))
    assert seen == list(range(951, 1, -50))


def test_a_sampler_is_entered_by_its_name(monkeypatch):
    monkeypatch.setattr(entries, "SAMPLERS", entered := dict(SAMPLERS))

    @sampler("Halfway", default_eta=0.5, media=("pictures",))
    def halfway(denoiser, x, sigmas, noise, callback=None, options=PLAIN):
        for _ in sigmas[:-1]:
            x = (x + denoiser(x, sigmas[0])) / 2
        return x

    assert entered["Halfway"].options().eta == 0.5
    assert entered["Halfway"].function is halfway
    with pytest.raises(ValueError, match=r"'Euler' is taken by inference\.sampling\.euler\.euler;"):
        sampler("Euler")(halfway)
    unknown: dict[str, Any] = {"eta": 1.0}
    with pytest.raises(TypeError, match="unexpected keyword argument 'eta'"):
        sampler("Other", **unknown)(halfway)


def test_samplers_of_clips_need_a_model_with_timesteps():
    for name in samplers_of("clips").keys() - samplers_of("pictures").keys():
        assert SAMPLERS[name].uses_model_steps
        with pytest.raises(TypeError, match=f"{name} needs a denoiser that is asked at timesteps"):
            SAMPLERS[name].function(expected, torch.zeros(1), [], NoiseSource([0], SHAPE))


def test_the_door_of_samplers_does_not_need_torch():
    code = "import sys; from inference.sampling import SAMPLERS, SCHEDULES; print(len(SAMPLERS), "
    code += "sorted({'torch', 'numpy', 'scipy', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(SAMPLERS)} []\n"
