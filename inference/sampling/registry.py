"""Queries on the samplers by name, once all of them are registered.

Source: A1111 1.10.1 `modules/sd_samplers_kdiffusion.py`, `sd_samplers_timesteps.py`,
`sd_samplers_lcm.py`.
"""

from difflib import get_close_matches

from inference.runtime import InputError

# isort: off
from inference.sampling import euler, second_order, dpm_solver, dpm_fast, timesteps, unipc  # noqa: F401
from inference.sampling import model_steps  # noqa: F401

# isort: on
from inference.sampling.entries import SAMPLERS, Medium, Sampler
from inference.sampling.levels import NoiseLevels
from inference.sampling.schedules import (
    SCHEDULES,
    USUAL,
    ScheduleOptions,
    find_schedule,
    plain_name,
    uniform,
)


def samplers_of(medium: Medium) -> dict[str, Sampler]:
    """Return the samplers of images, or of clips, by name."""
    return {name: entry for name, entry in SAMPLERS.items() if medium in entry.media}


def find_sampler(name: str) -> tuple[str, str | None]:
    """Return (sampler, schedule type or None) of a name in any case, as A1111's infotexts have it.

    Besides the names of picture samplers these are A1111's inner names (`k_dpmpp_2m`, with `_ka`
    for Karras), and the names from before 1.9 that end in a schedule type (`DPM++ 2M Karras`).

    Raises:
        InputError: there is no such sampler.
    """
    samplers = samplers_of("pictures")
    known = {
        alias.casefold(): label
        for label, sampler in samplers.items()
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
    raise InputError(f"sampler: expected one of {', '.join(samplers)}; got {name!r}{hint}")


def resolve_schedule(sampler: str, schedule_type: str) -> str:
    """Return the type that `Automatic` stands for with this sampler, as in A1111; else the type."""
    return SAMPLERS[sampler].automatic if schedule_type == "Automatic" else schedule_type


def sampling_sigmas(
    levels: NoiseLevels,
    sampler: str,
    schedule_type: str,
    steps: int,
    options: ScheduleOptions = USUAL,
) -> list[float]:
    """Return a sampler's falling sigmas, from pure noise.

    For DPM fast and DPM adaptive they lie between the ends of the model's range, whatever the
    schedule type, as in A1111. DDIM, DDIM CFG++, PLMS and UniPC have timesteps of their own as
    `Automatic`, and in A1111 ignore any other type; here another one gives its sigmas.

    Args:
        levels: of the model, of the sampler's kind (`Sampler.levels`).
        sampler: its name in `SAMPLERS`.
        schedule_type: `Automatic`, or a name in `SCHEDULES`.
        steps: the requested number; DDIM and its like may take one more or one less.
        options: A1111's settings of the schedule.

    Raises:
        InputError: there are no steps, or the options are inconsistent.
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
    """Return the schedule's sigmas, also for samplers that use their ends only."""
    entry = SAMPLERS[sampler]
    name = resolve_schedule(sampler, schedule_type)
    schedule = entry.own_schedule if name == "Automatic" else SCHEDULES[name]
    discards = entry.discards_penultimate or options.discard_penultimate
    sigmas = schedule(levels, steps + discards, options)
    if discards and not is_by_timesteps(sampler, schedule_type):
        del sigmas[-2]
    return sigmas


def is_by_timesteps(sampler: str, schedule_type: str) -> bool:
    """Return whether the sampler uses timesteps of its own."""
    return SAMPLERS[sampler].is_scaled and schedule_type == "Automatic"
