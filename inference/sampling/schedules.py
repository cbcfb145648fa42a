"""The noise schedules: falling sequences of a base model's noise levels.

Names, formulas and levels of the schedules are those of A1111 1.10.1 (`modules/sd_schedulers.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from math import atan, exp, log, tan
from typing import Literal, TypeVar

from inference.runtime import InputError, register
from inference.sampling.levels import NoiseLevels

OLD_KARRAS_RANGE = (0.1, 10.0)
"""The range of sigmas that A1111's `use_old_karras_scheduler_sigmas` assumes."""

ALIGN_YOUR_STEPS = {
    "SD1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "SDXL": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""Ten steps for each family of models: Sabour et al. 2024, arXiv 2404.14507."""


@dataclass(frozen=True)
class ScheduleOptions:
    """A1111's settings of the schedules. Where None stands, A1111 has 0.

    Raises:
        InputError: a value is out of range.
    """

    sigma_min: float | None = None
    """Lowest sigma instead of the model's; for schedules that are made from a range."""
    sigma_max: float | None = None
    """Highest sigma instead of the model's."""
    rho: float | None = None
    """Exponent of Karras (usually 7) and Polyexponential (usually 1)."""
    beta_alpha: float = 0.6
    """First parameter of Beta's distribution."""
    beta_beta: float = 0.6
    """Second parameter of Beta's distribution."""
    old_karras: bool = False
    """The range is 0.1 … 10 unless `sigma_min` and `sigma_max` are set."""
    discard_penultimate: bool = False
    """One more step is requested, and the last sigma before 0 left out."""
    align_your_steps: Literal["SD1", "SDXL"] = "SD1"
    """The table of Align Your Steps."""
    unipc_skip: Literal["time_uniform", "time_quadratic", "logSNR"] = "time_uniform"
    """The spacing of UniPC's own timesteps."""

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "rho", "beta_alpha", "beta_beta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name}: must be a finite number above 0, got {value}")
        choices = {
            "align_your_steps": tuple(ALIGN_YOUR_STEPS),
            "unipc_skip": ("time_uniform", "time_quadratic", "logSNR"),
        }
        for name, names in choices.items():
            if getattr(self, name) not in names:
                value = getattr(self, name)
                raise InputError(f"{name}: expected one of {', '.join(names)}; got {value!r}")

    def range(self, levels: NoiseLevels) -> tuple[float, float]:
        """Return the (lowest, highest) sigma of the schedules that are made from a range.

        Raises:
            InputError: the lowest is not below the highest.
        """
        low, high = OLD_KARRAS_RANGE if self.old_karras else (levels.sigma_min, levels.sigma_max)
        low, high = self.sigma_min or low, self.sigma_max or high
        if low >= high:
            raise InputError(
                f"sigma_min: must be below sigma_max; {low:g} and {high:g} do not fit together"
            )
        return low, high


USUAL = ScheduleOptions()

Schedule = Callable[[NoiseLevels, int, ScheduleOptions], list[float]]
"""(levels, steps, options) -> steps + 1 falling sigmas, the last one 0 unless stated otherwise."""

Function = TypeVar("Function", bound=Schedule)


@dataclass(frozen=True)
class NoiseSchedule:
    """A schedule, and the `ScheduleOptions` that it uses."""

    function: Schedule
    heeds_range: bool = False
    """Whether it spans a range from highest to lowest sigma that can be set."""
    default_rho: float | None = None
    """Its default exponent; None if it has none."""

    def __call__(
        self, levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL
    ) -> list[float]:
        """Return the sigmas."""
        return self.function(levels, steps, options)


SCHEDULES: dict[str, NoiseSchedule] = {}
"""The schedules by name, besides `Automatic`, whose meaning depends on the sampler."""


def schedule(
    name: str, *, heeds_range: bool = False, default_rho: float | None = None
) -> Callable[[Function], Function]:
    """Return the decorator that registers a noise schedule under a name; see `NoiseSchedule`.

    Raises:
        ValueError: the name is taken by another function.
    """

    def enter(function: Function) -> Function:
        register(SCHEDULES, name, NoiseSchedule(function, heeds_range, default_rho))
        return function

    return enter


@schedule("Uniform")
def uniform(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Space timesteps evenly from the model's last to its first, whatever the options."""
    return [*evenly_timed(levels, levels.sigma_min, levels.sigma_max, steps), 0.0]


@schedule("Normal", heeds_range=True)
def normal(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Space timesteps evenly between those of the range's ends."""
    return [*evenly_timed(levels, *options.range(levels), steps), 0.0]


@schedule("SGM Uniform", heeds_range=True)
def sgm_uniform(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Space timesteps evenly, one short of the first (Stability AI generative-models)."""
    return [*evenly_timed(levels, *options.range(levels), steps + 1)[:-1], 0.0]


def evenly_timed(levels: NoiseLevels, low: float, high: float, count: int) -> list[float]:
    """Return `count` sigmas at evenly spaced timesteps from the one of `high` to that of `low`."""
    import numpy as np

    ends = levels.timestep(high), levels.timestep(low)
    return [levels.sigma(timestep) for timestep in np.linspace(*ends, count)]


@schedule("Karras", heeds_range=True, default_rho=7.0)
def karras(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Space evenly in sigma^(1/rho): Karras et al. 2022, arXiv 2206.00364, equation 5."""
    return [*karras_sigmas(*options.range(levels), steps, options.rho or 7.0), 0.0]


def karras_sigmas(low: float, high: float, count: int, rho: float = 7.0) -> list[float]:
    """Return `count` sigmas from `high` to `low`, even in sigma^(1/rho)."""
    import numpy as np

    roots = np.linspace(high ** (1 / rho), low ** (1 / rho), count)
    return [float(root**rho) for root in roots]


@schedule("Exponential", heeds_range=True)
def exponential(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Space evenly in log sigma."""
    import numpy as np

    low, high = options.range(levels)
    return [exp(value) for value in np.linspace(log(high), log(low), steps)] + [0.0]


@schedule("Polyexponential", heeds_range=True, default_rho=1.0)
def polyexponential(
    levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL
) -> list[float]:
    """Follow a polynomial of degree rho in log sigma; Exponential with rho 1 (k-diffusion)."""
    import numpy as np

    low, high = options.range(levels)
    ramp = np.linspace(1, 0, steps) ** (options.rho or 1.0)
    return [exp(part * log(high / low) + log(low)) for part in ramp] + [0.0]


@schedule("KL Optimal", heeds_range=True)
def kl_optimal(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Space evenly in arctan sigma, ending at the lowest sigma, not at 0.

    Sabour et al. 2024, arXiv 2404.14507, theorem 3.1.
    """
    import numpy as np

    low, high = options.range(levels)
    return [tan(angle) for angle in np.linspace(atan(high), atan(low), steps + 1)]


@schedule("Align Your Steps")
def align_your_steps(
    levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL
) -> list[float]:
    """Resample a model family's table evenly in log sigma: arXiv 2404.14507."""
    import numpy as np

    table = ALIGN_YOUR_STEPS[options.align_your_steps]
    places = np.linspace(0, len(table) - 1, steps)
    logs = np.interp(places, np.arange(len(table)), np.log(table))
    return [exp(value) for value in logs] + [0.0]


@schedule("Simple")
def simple(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Take every n-th of the model's levels, from the highest down (ComfyUI)."""
    stride = levels.count / steps
    return [levels.level(-1 - int(step * stride)) for step in range(steps)] + [0.0]


@schedule("DDIM")
def ddim(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Take levels 1, 1 + n, … falling, with n = levels // steps: `steps` or more sigmas, then 0.

    A single step would start at the second lowest; here it starts at the highest.
    """
    if steps == 1:
        return [levels.sigma_max, 0.0]
    indexes = range(1, levels.count, max(1, levels.count // steps))
    return [levels.level(index) for index in reversed(indexes)] + [0.0]


@schedule("Beta", heeds_range=True)
def beta(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Take quantiles of a beta distribution over the range: Lee et al. 2024, arXiv 2407.12173."""
    import numpy as np
    from scipy.special import betaincinv

    low, high = options.range(levels)
    shares = betaincinv(options.beta_alpha, options.beta_beta, 1 - np.linspace(0, 1, steps))
    return [low + float(share) * (high - low) for share in shares] + [0.0]


def schedule_types() -> tuple[str, ...]:
    """Return the names for recipes: `Automatic`, and the schedules."""
    return "Automatic", *SCHEDULES


def find_schedule(name: str) -> str:
    """Return a schedule's label, from its label or A1111's internal name in any case.

    Raises:
        InputError: there is none of this name.
    """
    labels = {plain_name(label): label for label in ("Automatic", *SCHEDULES)}
    try:
        return labels[plain_name(name)]
    except KeyError:
        close = get_close_matches(plain_name(name), labels, 1)
        hint = f"; the nearest is {labels[close[0]]}" if close else ""
        raise InputError(
            f"schedule type: expected one of {', '.join(labels.values())}; got {name!r}{hint}"
        ) from None


def plain_name(name: str) -> str:
    """Return a name without case, spaces and underscores."""
    return name.casefold().replace(" ", "").replace("_", "")


def ddim_levels(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Return timesteps 1, 1 + n, … falling, n = timesteps // steps; ending at the first, not 0.

    As A1111's DDIM takes them: 20 steps are 19 evaluations, at 951 … 51. It would do nothing in
    one step; here one step goes from the highest noise to the first level.
    """
    timesteps = list(reversed(leading_timesteps(levels, steps)))
    if len(timesteps) == 1:
        timesteps.insert(0, levels.last_timestep)
    return [levels.sigma(timestep) for timestep in timesteps]


def leading_timesteps(levels: NoiseLevels, steps: int) -> list[int]:
    """Return timesteps 1, 1 + n, … rising: A1111 1.10.1 `modules/sd_samplers_timesteps.py`."""
    return list(range(1, levels.count, max(1, levels.count // steps)))


def unipc_levels(levels: NoiseLevels, steps: int, options: ScheduleOptions = USUAL) -> list[float]:
    """Return UniPC's own sigmas, from the highest to the lowest, not 0; as many as DDIM's.

    `options.unipc_skip` is their spacing: 20 even steps are at 999, 949.05, … 49.95.
    """
    count = len(leading_timesteps(levels, steps))
    return unipc_grid(levels, 1.0, count, options.unipc_skip)


def unipc_grid(levels: NoiseLevels, start: float, steps: int, skip: str) -> list[float]:
    """Return steps + 1 sigmas from the time `start` in (0, 1] down to that of the lowest level.

    The time of timestep t of n is (t + 1) / n: Zhao et al. 2023, arXiv 2302.04867 (UniPC's code).
    """
    import numpy as np

    end = 1 / levels.count
    if skip == "logSNR":
        high, low = levels.sigma(start * levels.count - 1), levels.sigma_min
        return [exp(value) for value in np.linspace(log(high), log(low), steps + 1)]
    power = {"time_uniform": 1, "time_quadratic": 2}[skip]
    times = np.linspace(start ** (1 / power), end ** (1 / power), steps + 1) ** power
    return [levels.sigma(time * levels.count - 1) for time in times]
