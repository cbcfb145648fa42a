"""Schedules against A1111's published values, their formulas, and diffusers."""

import math
from itertools import pairwise

import pytest
import torch

from inference.models.parametrization import Epsilon
from inference.runtime.errors import InputError
from inference.sampling import schedules
from inference.sampling.levels import LcmLevels
from inference.sampling.registry import SAMPLERS, resolve_schedule, sampling_sigmas
from inference.sampling.schedules import (
    ALIGN_YOUR_STEPS,
    SCHEDULES,
    ScheduleOptions,
    find_schedule,
    schedule,
)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0).float()
LEVELS = Epsilon(ALPHAS)  # Stable Diffusion's
LOW, HIGH = 0.0291675, 14.614642
PLAIN = ScheduleOptions()


def test_schedules_heed_what_their_entries_say():
    narrow, steep = ScheduleOptions(sigma_min=0.1, sigma_max=5.0), ScheduleOptions(rho=3.0)

    def those(options) -> set[str]:
        return {
            name
            for name, schedule in SCHEDULES.items()
            if schedule(LEVELS, 9, options) != schedule(LEVELS, 9, PLAIN)
        }

    assert those(narrow) == {name for name, one in SCHEDULES.items() if one.heeds_range}
    assert those(steep) == {name for name, one in SCHEDULES.items() if one.default_rho}
    for name in those(steep):
        usual = ScheduleOptions(rho=SCHEDULES[name].default_rho)
        assert SCHEDULES[name](LEVELS, 9, usual) == SCHEDULES[name](LEVELS, 9, PLAIN)


def test_a_schedule_is_entered_by_its_name(monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES", entered := dict(SCHEDULES))

    @schedule("Halves", heeds_range=True)
    def halves(levels, steps, options=PLAIN):
        return [options.range(levels)[1] / 2**step for step in range(steps)] + [0.0]

    assert entered["Halves"].heeds_range
    assert entered["Halves"](LEVELS, 3) == pytest.approx([HIGH, HIGH / 2, HIGH / 4, 0])
    with pytest.raises(ValueError, match=r"'Karras' is taken by inference.*karras"):
        schedule("Karras")(halves)


# Published values of the web UI 1.10.1 for 20 steps: second sigma, last one above 0.
VALUES = {
    "Uniform": (10.7468, LOW),
    "Normal": (10.7468, LOW),
    "Karras": (11.7254, LOW),
    "Exponential": (10.5363, LOW),
    "Polyexponential": (10.5363, LOW),
    "SGM Uniform": (10.9073, 0.22545),
    "Align Your Steps": (9.5217, 0.029),
    "Beta": (14.4152, LOW),
}


@pytest.mark.parametrize("name", VALUES)
def test_sigmas_are_a1111s(name):
    sigmas = SCHEDULES[name](LEVELS, 20, PLAIN)
    second, last = VALUES[name]
    assert len(sigmas) == 21
    assert sigmas[0] == pytest.approx(14.615 if name == "Align Your Steps" else HIGH, rel=1e-6)
    assert sigmas[1] == pytest.approx(second, abs=5.1e-5)
    assert sigmas[-2] == pytest.approx(last, abs=5.1e-6)
    assert sigmas[-1] == 0


def test_kl_optimal_ends_at_the_lowest_sigma():
    sigmas = SCHEDULES["KL Optimal"](LEVELS, 20, PLAIN)
    assert len(sigmas) == 21
    assert sigmas[1] == pytest.approx(6.9957, abs=5.1e-5)
    assert sigmas[-1] == pytest.approx(LOW, rel=2e-6)


def test_sgm_uniform_stops_one_short():
    assert LEVELS.timestep(SCHEDULES["SGM Uniform"](LEVELS, 20, PLAIN)[-2]) == pytest.approx(49.95)


@pytest.mark.parametrize(("steps", "count"), [(20, 20), (30, 31), (25, 25)])
def test_ddim_schedule_is_every_nth_level(steps, count):
    sigmas = SCHEDULES["DDIM"](LEVELS, steps, PLAIN)
    indexes = list(range(1, 1000, 1000 // steps))[::-1]
    assert [LEVELS.timestep(sigma) for sigma in sigmas[:-1]] == pytest.approx(indexes)
    assert (len(sigmas) - 1, sigmas[-1]) == (count, 0)
    if steps == 20:
        assert sigmas[0] == pytest.approx(11.0283, abs=5.1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 11, 20, 50])
def test_sigmas_equal_their_formulas(steps):
    low, high = LEVELS.sigma_min, LEVELS.sigma_max
    ramp = [i / max(1, steps - 1) for i in range(steps)]
    karras = [(high ** (1 / 7) + part * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for part in ramp]
    expected = {
        "Uniform": [LEVELS.sigma(999 * (1 - part)) for part in ramp],
        "Karras": karras,
        "Exponential": [high * (low / high) ** part for part in ramp],
        "SGM Uniform": [LEVELS.sigma(999 * (1 - i / steps)) for i in range(steps)],
        "Simple": [LEVELS.sigma(999 - int(i * 1000 / steps)) for i in range(steps)],
    }
    for name, sigmas in expected.items():
        assert SCHEDULES[name](LEVELS, steps, PLAIN) == pytest.approx([*sigmas, 0.0], rel=1e-9)
    angles = [
        math.atan(high) + i / steps * (math.atan(low) - math.atan(high)) for i in range(steps)
    ]
    theirs = SCHEDULES["KL Optimal"](LEVELS, steps, PLAIN)
    assert theirs == pytest.approx([*map(math.tan, angles), low], rel=1e-9)
    by_rho = SCHEDULES["Polyexponential"](LEVELS, steps, ScheduleOptions(rho=2.0))
    squares = [low * (high / low) ** ((1 - part) ** 2) for part in ramp]
    assert by_rho == pytest.approx([*squares, 0.0], rel=1e-9)


def test_beta_is_the_quantiles_of_its_distribution():
    from scipy.stats import beta

    options = ScheduleOptions(beta_alpha=0.7, beta_beta=1.3)
    sigmas = SCHEDULES["Beta"](LEVELS, 9, options)
    shares = [(sigma - LEVELS.sigma_min) / (HIGH - LEVELS.sigma_min) for sigma in sigmas[:-1]]
    quantiles = [beta.ppf(1 - i / 8, 0.7, 1.3) for i in range(9)]
    assert shares == pytest.approx(quantiles, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("family", ALIGN_YOUR_STEPS)
def test_align_your_steps_is_its_table(family):
    options = ScheduleOptions(align_your_steps=family)
    table = ALIGN_YOUR_STEPS[family]
    assert SCHEDULES["Align Your Steps"](LEVELS, 11, options) == pytest.approx([*table, 0.0])
    finer = SCHEDULES["Align Your Steps"](LEVELS, 21, options)
    assert finer[:-1:2] == pytest.approx(table)
    assert finer[1] == pytest.approx(math.sqrt(table[0] * table[1]))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 37, 150])
def test_sigmas_fall_from_near_the_highest(name, steps):
    sigmas = SCHEDULES[name](LEVELS, steps, PLAIN)
    assert all(high > low for high, low in pairwise(sigmas))
    assert sigmas[0] > 14.6 or name == "DDIM"
    assert all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Uniform", {}),
        ("Karras", {"use_karras_sigmas": True}),
        ("Exponential", {"use_exponential_sigmas": True}),
        ("Beta", {"use_beta_sigmas": True}),
        ("Simple", {"timestep_spacing": "trailing"}),
    ],
)
def test_sigmas_are_those_of_diffusers(name, options):
    from diffusers import EulerDiscreteScheduler

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    noise_scheduler = EulerDiscreteScheduler(
        **{**settings, "timestep_spacing": "linspace", **options}
    )
    noise_scheduler.set_timesteps(20)
    theirs = noise_scheduler.sigmas.tolist()
    assert SCHEDULES[name](LEVELS, 20, PLAIN) == pytest.approx(theirs, rel=2e-5)


def test_timesteps_and_sigmas_are_inverse():
    for timestep in (0.0, 0.3, 49.95, 500, 998.5, 999):
        assert LEVELS.timestep(LEVELS.sigma(timestep)) == pytest.approx(timestep, abs=1e-9)
    assert LEVELS.timestep(1e-3) == 0  # held within the model's range
    assert LEVELS.timestep(80) == 999


def test_whole_timesteps_come_out_whole():
    timesteps = torch.tensor([LEVELS.timestep(LEVELS.sigma(t)) for t in range(1000)])
    assert torch.equal(timesteps, torch.arange(1000.0))


def test_model_without_signal_at_its_last_timestep_has_a_finite_sigma():
    levels = Epsilon(torch.linspace(0.999, 0, 1000))
    assert levels.sigma_max == pytest.approx(4518.8, rel=1e-3)


def test_options_change_the_range():
    options = ScheduleOptions(sigma_min=0.1, sigma_max=5.0, rho=3.0)
    sigmas = SCHEDULES["Karras"](LEVELS, 3, options)
    middle = ((5 ** (1 / 3) + 0.1 ** (1 / 3)) / 2) ** 3
    assert sigmas == pytest.approx([5.0, middle, 0.1, 0.0])
    for name in ("Exponential", "Polyexponential", "SGM Uniform", "Normal", "Beta", "KL Optimal"):
        assert SCHEDULES[name](LEVELS, 9, options)[0] == pytest.approx(5.0)
    for name in ("Uniform", "Simple", "DDIM", "Align Your Steps"):  # heed no range
        assert SCHEDULES[name](LEVELS, 9, options) == SCHEDULES[name](LEVELS, 9, PLAIN)
    old = SCHEDULES["Karras"](LEVELS, 9, ScheduleOptions(old_karras=True))
    assert (old[0], old[-2]) == pytest.approx((10.0, 0.1))
    mixed = SCHEDULES["Karras"](LEVELS, 9, ScheduleOptions(old_karras=True, sigma_max=12.0))
    assert (mixed[0], mixed[-2]) == pytest.approx((12.0, 0.1))


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 0.0},
        {"sigma_max": -1.0},
        {"rho": float("nan")},
        {"beta_alpha": 0.0},
        {"align_your_steps": "SVD"},
        {"unipc_skip": "time"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        ScheduleOptions(**options)


def test_an_empty_range_is_refused():
    with pytest.raises(InputError, match="must be below sigma_max"):
        SCHEDULES["Karras"](LEVELS, 9, ScheduleOptions(sigma_min=20.0))


def test_discarding_takes_the_penultimate_of_one_more():
    whole = SCHEDULES["Karras"](LEVELS, 21, PLAIN)
    assert sampling_sigmas(LEVELS, "DPM2", "Automatic", 20) == [*whole[:-2], 0.0]
    options = ScheduleOptions(discard_penultimate=True)
    assert sampling_sigmas(LEVELS, "DPM2", "Automatic", 20, options) == [*whole[:-2], 0.0]
    assert sampling_sigmas(LEVELS, "Euler", "Karras", 20, options) == [*whole[:-2], 0.0]
    assert sampling_sigmas(LEVELS, "DDIM", "Automatic", 19, options) == sampling_sigmas(
        LEVELS, "DDIM", "Automatic", 20
    )


@pytest.mark.parametrize(
    ("steps", "evaluations", "first", "last"),
    [(10, 9, 901, 101), (20, 19, 951, 51), (25, 24, 961, 41), (30, 30, 991, 34), (50, 49, 981, 21)],
)
@pytest.mark.parametrize("name", ["DDIM", "DDIM CFG++", "PLMS"])
def test_ddim_takes_the_timesteps_of_a1111(name, steps, evaluations, first, last):
    sigmas = sampling_sigmas(LEVELS, name, "Automatic", steps)
    timesteps = [LEVELS.timestep(sigma) for sigma in sigmas]
    assert len(sigmas) - 1 == evaluations
    assert timesteps[0] == pytest.approx(first)
    assert timesteps[-2] == pytest.approx(last)
    assert timesteps[-1] == pytest.approx(1)
    if steps == 20:
        assert sigmas[0] == pytest.approx(11.0283, abs=5.1e-5)


@pytest.mark.parametrize(("steps", "evaluations"), [(20, 20), (30, 31), (1, 1)])
def test_unipc_takes_the_timesteps_of_a1111(steps, evaluations):
    sigmas = sampling_sigmas(LEVELS, "UniPC", "Automatic", steps)
    timesteps = [LEVELS.timestep(sigma) for sigma in sigmas]
    assert len(sigmas) - 1 == evaluations
    assert timesteps == pytest.approx([999 * (1 - i / evaluations) for i in range(evaluations + 1)])
    if steps == 20:
        assert (timesteps[1], timesteps[-2]) == pytest.approx((949.05, 49.95))


def test_unipc_skips():
    quadratic, even = (
        sampling_sigmas(LEVELS, "UniPC", "Automatic", 20, ScheduleOptions(unipc_skip=skip))
        for skip in ("time_quadratic", "logSNR")
    )
    assert LEVELS.timestep(quadratic[10]) == pytest.approx(((1 + 0.001**0.5) / 2) ** 2 * 1000 - 1)
    assert even == pytest.approx([HIGH * (LOW / HIGH) ** (i / 20) for i in range(21)], rel=2e-6)


def test_lcm_has_fifty_levels():
    levels = LcmLevels(LEVELS)
    assert (levels.count, levels.last_timestep) == (50, 999)
    assert levels.sigma_max == LEVELS.sigma_max
    assert levels.sigma_min == pytest.approx(LEVELS.sigma(19))
    assert [levels.sigma(t) for t in (19, 679, 999)] == pytest.approx(
        [LEVELS.sigma(t) for t in (19, 679, 999)]
    )
    sigmas = sampling_sigmas(levels, "LCM", "Automatic", 4)
    assert [levels.timestep(sigma) for sigma in sigmas[:-1]] == [999, 679, 339, 19]
    between = math.sqrt(LEVELS.sigma(659) * LEVELS.sigma(679))
    assert levels.sigma(669) == pytest.approx(between)
    assert SCHEDULES["Simple"](levels, 5, PLAIN)[1] == pytest.approx(LEVELS.sigma(799))


def test_automatic_is_what_a1111_tells():
    reported = {name: resolve_schedule(name, "Automatic") for name in SAMPLERS}
    karras = {"DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"}
    exponential = {"DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"}
    assert {name for name in reported if reported[name] == "Karras"} == karras
    assert {name for name in reported if reported[name] == "Exponential"} == exponential
    assert {reported[name] for name in reported.keys() - karras - exponential} == {"Automatic"}
    assert resolve_schedule("DPM++ 2M", "Uniform") == "Uniform"
    uniform = SCHEDULES["Uniform"](LEVELS, 5, PLAIN)
    assert sampling_sigmas(LEVELS, "Euler", "Automatic", 5) == uniform


def test_schedules_are_found_by_their_names():
    for name in ("sgm_uniform", "SGM Uniform", "SGMUniform", "sgm uniform"):
        assert find_schedule(name) == "SGM Uniform"
    assert find_schedule("automatic") == "Automatic"
    assert {find_schedule(name.lower().replace(" ", "_")) for name in SCHEDULES} == set(SCHEDULES)
    with pytest.raises(InputError, match="nearest is Karras"):
        find_schedule("karas")


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="steps: must be at least 1"):
        sampling_sigmas(LEVELS, "Euler", "Automatic", 0)
