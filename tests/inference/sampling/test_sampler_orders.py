"""How fast the samplers' errors shrink, on data whose way down is known to twelve digits.

The data are x0 ~ (N(-1, 0.3^2) + N(1, 0.3^2)) / 2 in every element, so that the expected clean
latent bends in x; the reference solution is scipy's, of order 8.
"""

import functools
import math

import pytest
import torch

from inference.sampling.base import SamplerOptions
from inference.sampling.noise import NoiseSource
from inference.sampling.registry import SAMPLERS
from inference.sampling.schedules import karras_sigmas

HIGH, LOW, SPREAD = 3.0, 0.3, 0.3
START = torch.linspace(-3, 3, 9, dtype=torch.float64)[None, None, None] * HIGH


class Mixture:
    """The expected clean latent."""

    last_uncond = None

    def __call__(self, x, sigma):
        variance = SPREAD**2 + sigma**2
        share = SPREAD**2 / variance
        self.last_uncond = torch.tanh(x / variance) * (1 - share) + x * share
        return self.last_uncond


@functools.cache
def solution():
    from scipy.integrate import solve_ivp

    def slope(log_sigma, x):
        return x - Mixture()(torch.tensor(x), math.exp(log_sigma)).numpy()

    ends = math.log(HIGH), math.log(LOW)
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13}
    way = solve_ivp(slope, ends, START.flatten().numpy(), **options)
    return torch.tensor(way.y[:, -1]).reshape(START.shape)


def error(name, sigmas, options=None):
    """The largest error at the last sigma, without fresh noise."""
    sampler = SAMPLERS[name]
    noise = NoiseSource([1], (1, 1, 9))
    options = options or SamplerOptions()
    result = sampler.function(Mixture(), START.clone(), sigmas, noise, None, options)
    if sampler.is_scaled:
        result = result * math.sqrt(1 + sigmas[-1] ** 2)
    return (result - solution()).abs().max().item()


def order(name, options=None, tiny_steps=0):
    """log2 of how much less the error is with half the length of step."""
    errors = []
    for steps in (80, 161):  # in DPM fast both end with a step of order 2
        shift = 1e-4 * tiny_steps
        tiny = [HIGH * math.exp(-1e-4 * step) for step in range(tiny_steps)]
        rest = karras_sigmas(LOW, HIGH * math.exp(-shift), steps + 1)
        errors.append(error(name, tiny + rest, options))
    return math.log(errors[0] / errors[1]) / math.log(161 / 80), errors[1]


ORDERS = {
    "Euler": (1, 3e-3),
    "Euler a": (1, 3e-3),
    "DDIM": (1, 3e-3),
    "DDIM CFG++": (1, 3e-3),
    "Heun": (2, 3e-5),
    "DPM2": (2, 2e-5),
    "DPM2 a": (2, 2e-5),
    "DPM++ 2M": (2, 2e-5),
    "DPM++ SDE": (2, 1e-5),
    "DPM++ 2S a": (2, 1e-5),
    "DPM++ 2M SDE": (2, 2e-5),
    "DPM++ 2M SDE Heun": (2, 3e-5),
    "DPM++ 3M SDE": (2, 6e-6),
    "LMS": (2, 7e-6),  # held back by its first steps
    "PLMS": (2, 6e-6),  # so too; and it takes sigmas for even
    "UniPC": (2, 5e-5),  # held back by its last step
}


@pytest.mark.parametrize("name", ORDERS)
def test_errors_shrink_as_the_order_promises(name):
    found, last = order(name)
    promised, largest = ORDERS[name]
    assert found == pytest.approx(promised, abs=0.1)
    assert last < largest


FULL = SamplerOptions(unipc_lower_order_final=False)


@pytest.mark.parametrize(
    ("name", "promised", "options"),
    [
        ("DPM++ 2M", 2, None),
        ("DPM++ 3M SDE", 2, None),  # its third term is half of what order 3 takes
        ("LMS", 4, None),
        ("UniPC", 4, FULL),  # of order 3, corrected
        ("UniPC", 4, SamplerOptions(unipc_variant="bh2", unipc_lower_order_final=False)),
        ("UniPC", 3, SamplerOptions(unipc_order=2, unipc_lower_order_final=False)),
        ("UniPC", 2, SamplerOptions(unipc_order=1)),
        ("UniPC", 1, SamplerOptions(unipc_variant="vary_coeff")),  # as its code stands
    ],
)
def test_short_first_steps_let_the_whole_order_be_seen(name, promised, options):
    found, last = order(name, options, tiny_steps=4)
    assert found == pytest.approx(promised, abs=0.35)
    assert last < 2e-3


def test_dpm_fast_is_of_order_3():
    errors = []
    for steps in (80, 161):
        ends = [HIGH, *[1.0] * (steps - 1), LOW]  # it heeds the ends
        errors.append(error("DPM fast", ends))
    assert math.log(errors[0] / errors[1]) / math.log(161 / 80) > 2.8
    assert errors[1] < 1e-5


def test_dpm_adaptive_keeps_its_tolerance():
    assert error("DPM adaptive", [HIGH, LOW]) < 0.03


@pytest.mark.parametrize("name", ["DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"])
def test_more_steps_follow_the_same_brownian_path(name):
    results = {}
    for steps in (8, 24, 72):
        noise = NoiseSource([1], (1, 2, 9), brownian_range=(LOW, HIGH))
        start = START.float().expand(1, 1, 2, 9)
        sigmas = karras_sigmas(LOW, HIGH, steps + 1)
        options = SAMPLERS[name].options()
        results[steps] = SAMPLERS[name].function(Mixture(), start, sigmas, noise, None, options)
    coarse, fine = ((results[n] - results[72]).square().mean().sqrt() for n in (8, 24))
    assert fine < 0.5 * coarse
    assert fine < 0.1
