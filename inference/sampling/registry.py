"""The table of samplers, and their names.

Source: A1111 1.10.1 `modules/sd_samplers_kdiffusion.py`, `sd_samplers_timesteps.py`,
`sd_samplers_lcm.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, sqrt
from typing import Any

from inference.runtime import InputError
from inference.sampling import dpm_fast, dpm_solver, euler, second_order, timesteps
from inference.sampling.base import SamplerFunction, SamplerOptions, UniPCVariant
from inference.sampling.euler import lcm
from inference.sampling.schedules import (
    SCHEDULES,
    USUAL,
    LcmLevels,
    NoiseLevels,
    Schedule,
    ScheduleOptions,
    ddim_levels,
    find_schedule,
    plain_name,
    uniform,
    unipc_levels,
)
from inference.sampling.second_order import lms
from inference.sampling.unipc import unipc


@dataclass(frozen=True)
class Sampler:
    """A sampler and what belongs to its name in A1111."""

    function: SamplerFunction
    automatic: str = "Automatic"
    """The schedule type that `Automatic` stands for, and is told as."""
    own_schedule: Schedule = uniform
    """The sigmas of `Automatic` where that stands for no other."""
    levels: type[NoiseLevels] = NoiseLevels
    """The levels of noise that the model is asked at; the denoiser's too."""
    default_eta: float | None = None
    """Share of fresh noise unless told otherwise; None where there is none, or no choice."""
    is_scaled: bool = False
    """Starts from noise of the variance sigma^2 + 1, as if nothing else were in the latent, and
    ends at a latent of the variance that the model knows: A1111's samplers by timesteps."""
    discards_penultimate: bool = False
    """Asks for one sigma more, and leaves out the last one above 0."""
    is_second_order: bool = False
    """A1111 counts two evaluations a step, for prompt editing and for the refiner."""
    uses_brownian: bool = False
    """Fresh noise is a way along a Brownian path, and not the next draw of the generator."""
    cfg_divisor: float = 1.0
    """The CFG scale is divided by it."""
    needs_uncond: bool = False
    """The denoiser must tell what it expects for the negative prompts, at every CFG scale."""
    takes_range_only: bool = False
    """Heeds only the ends of the list of sigmas."""
    couples_batch: bool = False
    """Its steps depend on all pictures of a batch: draw one at a time."""
    aliases: tuple[str, ...] = ()
    """A1111's inner names."""

    def start_scale(self, sigma: float) -> float:
        """What the first noise is multiplied by."""
        return sqrt(1 + sigma**2) if self.is_scaled else sigma

    def options(
        self,
        eta: float | None = None,
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = inf,
        s_noise: float = 1.0,
        unipc_order: int = 3,
        unipc_variant: UniPCVariant = "bh1",
        unipc_lower_order_final: bool = True,
        timestep_of: Callable[[float], float] | None = None,
    ) -> SamplerOptions:
        """`SamplerOptions` in which eta, where it is None, is the sampler's default."""
        return SamplerOptions(
            (self.default_eta or 0.0) if eta is None else eta,
            s_churn,
            s_tmin,
            s_tmax,
            s_noise,
            unipc_order,
            unipc_variant,
            unipc_lower_order_final,
            timestep_of,
        )


def _ddim(function: SamplerFunction, alias: str, *, is_plus: bool = False) -> Sampler:
    return Sampler(
        function,
        own_schedule=ddim_levels,
        default_eta=0.0,
        is_scaled=True,
        cfg_divisor=12.5 if is_plus else 1.0,
        needs_uncond=is_plus,
        aliases=(alias,),
    )


def _brownian(function: SamplerFunction, alias: str, *, is_third: bool = False) -> Sampler:
    return Sampler(
        function,
        automatic="Exponential",
        default_eta=1.0,
        uses_brownian=True,
        discards_penultimate=is_third,
        aliases=(alias,),
    )


SAMPLERS: dict[str, Sampler] = {
    "Euler": Sampler(euler.euler, aliases=("k_euler",)),
    "Euler a": Sampler(
        euler.euler_ancestral,
        default_eta=1.0,
        aliases=("k_euler_a", "k_euler_ancestral"),
    ),
    "LMS": Sampler(lms, aliases=("k_lms",)),
    "Heun": Sampler(second_order.heun, is_second_order=True, aliases=("k_heun",)),
    "DPM2": Sampler(
        second_order.dpm2,
        automatic="Karras",
        discards_penultimate=True,
        is_second_order=True,
        aliases=("k_dpm_2",),
    ),
    "DPM2 a": Sampler(
        second_order.dpm2_ancestral,
        automatic="Karras",
        default_eta=1.0,
        discards_penultimate=True,
        is_second_order=True,
        aliases=("k_dpm_2_a",),
    ),
    "DPM++ 2M": Sampler(dpm_solver.dpmpp_2m, automatic="Karras", aliases=("k_dpmpp_2m",)),
    "DPM++ SDE": Sampler(
        dpm_solver.dpmpp_sde,
        automatic="Karras",
        default_eta=1.0,
        is_second_order=True,
        uses_brownian=True,
        aliases=("k_dpmpp_sde",),
    ),
    "DPM++ 2M SDE": _brownian(dpm_solver.dpmpp_2m_sde, "k_dpmpp_2m_sde"),
    "DPM++ 2M SDE Heun": _brownian(dpm_solver.dpmpp_2m_sde_heun, "k_dpmpp_2m_sde_heun"),
    "DPM++ 2S a": Sampler(
        dpm_solver.dpmpp_2s_ancestral,
        automatic="Karras",
        default_eta=1.0,
        is_second_order=True,
        aliases=("k_dpmpp_2s_a",),
    ),
    "DPM++ 3M SDE": _brownian(dpm_solver.dpmpp_3m_sde, "k_dpmpp_3m_sde", is_third=True),
    "DPM fast": Sampler(
        dpm_fast.dpm_fast,
        default_eta=1.0,
        takes_range_only=True,
        aliases=("k_dpm_fast",),
    ),
    "DPM adaptive": Sampler(
        dpm_fast.dpm_adaptive,
        default_eta=1.0,
        takes_range_only=True,
        couples_batch=True,
        aliases=("k_dpm_ad",),
    ),
    "Restart": Sampler(
        second_order.restart, automatic="Karras", is_second_order=True, aliases=("restart",)
    ),
    "DDIM": _ddim(timesteps.ddim, "ddim"),
    "DDIM CFG++": _ddim(timesteps.ddim_cfgpp, "ddim_cfgpp", is_plus=True),
    "PLMS": Sampler(timesteps.plms, own_schedule=ddim_levels, is_scaled=True, aliases=("plms",)),
    "UniPC": Sampler(unipc, own_schedule=unipc_levels, is_scaled=True, aliases=("unipc",)),
    "LCM": Sampler(lcm, levels=LcmLevels, aliases=("k_lcm",)),
}
"""The samplers by name."""


def sampler(name: str, **facts: Any) -> Callable[[SamplerFunction], SamplerFunction]:
    """Return the decorator that enters a function as the sampler of a name.

    Args:
        name: what recipes call it.
        **facts: the other fields of `Sampler`.
    """

    def enter(function: SamplerFunction) -> SamplerFunction:
        SAMPLERS[name] = Sampler(function, **facts)
        return function

    return enter


def find_sampler(name: str) -> tuple[str, str | None]:
    """(sampler, schedule type or None) of a name in any case, as A1111 and its infotexts know it.

    Besides the names of `SAMPLERS` these are A1111's inner names (`k_dpmpp_2m`, with `_ka` for
    Karras), and the names from before 1.9 that end in a schedule type (`DPM++ 2M Karras`).

    Raises:
        InputError: there is no such sampler.
    """
    known = {
        alias.casefold(): label
        for label, sampler in SAMPLERS.items()
        for alias in (label, *sampler.aliases)
    }
    plain = " ".join(name.casefold().split())
    if plain in known:
        return known[plain], None
    if plain.removesuffix("_ka") in known:
        return known[plain.removesuffix("_ka")], "Karras"
    words = plain.split(" ")
    labels = {plain_name(label) for label in ("Automatic", *SCHEDULES)}
    for count in range(1, len(words)):
        sampler, schedule = " ".join(words[:count]), " ".join(words[count:])
        if sampler in known and plain_name(schedule) in labels:
            return known[sampler], find_schedule(schedule)
    close = get_close_matches(plain, known, 1)
    hint = f"; the nearest is {known[close[0]]}" if close else ""
    raise InputError(f"sampler: expected one of {', '.join(SAMPLERS)}; got {name!r}{hint}")


def resolve_schedule(sampler: str, schedule_type: str) -> str:
    """What `Automatic` stands for with this sampler, as A1111 tells it; else the type itself."""
    return SAMPLERS[sampler].automatic if schedule_type == "Automatic" else schedule_type


def sampling_sigmas(
    levels: NoiseLevels,
    sampler: str,
    schedule_type: str,
    steps: int,
    options: ScheduleOptions = USUAL,
) -> list[float]:
    """The falling sigmas that a sampler goes through, from noise alone.

    For DPM fast and DPM adaptive they lie between the ends of the model's range, whatever the
    schedule type, as in A1111. DDIM, DDIM CFG++, PLMS and UniPC have timesteps of their own as
    `Automatic`, and in A1111 heed no other type; here another one gives its sigmas.

    Args:
        levels: of the model, of the sampler's kind (`Sampler.levels`).
        sampler: its name in `SAMPLERS`.
        schedule_type: `Automatic`, or a name in `SCHEDULES`.
        steps: how many are asked for; DDIM and its like may take one more or one less.
        options: what A1111's settings change.

    Raises:
        InputError: there are no steps, or the options do not fit together.
    """
    if steps < 1:
        raise InputError(f"steps: must be at least 1, got {steps}")
    if SAMPLERS[sampler].takes_range_only:
        within = uniform(levels, steps)
        return within if steps > 1 else [levels.sigma_max, levels.sigma_min]
    return scheduled_sigmas(levels, sampler, schedule_type, steps, options)


def scheduled_sigmas(
    levels: NoiseLevels, sampler: str, schedule_type: str, steps: int, options: ScheduleOptions
) -> list[float]:
    """The schedule's sigmas, also where a sampler heeds their ends only."""
    entry = SAMPLERS[sampler]
    name = resolve_schedule(sampler, schedule_type)
    schedule = entry.own_schedule if name == "Automatic" else SCHEDULES[name]
    discards = entry.discards_penultimate or options.discard_penultimate
    sigmas = schedule(levels, steps + discards, options)
    if discards and not is_by_timesteps(sampler, schedule_type):
        del sigmas[-2]
    return sigmas


def is_by_timesteps(sampler: str, schedule_type: str) -> bool:
    """Whether the sampler goes by timesteps of its own."""
    return SAMPLERS[sampler].is_scaled and schedule_type == "Automatic"
