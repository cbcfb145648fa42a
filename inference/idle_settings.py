"""Which settings of a drawing have no effect, given the others: what recipes warn about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from inference.prompt_syntax.composition import split_composition
from inference.sampler_facts import (
    ALWAYS_DISCARD,
    BY_TIMESTEPS,
    CHURNED,
    DEFAULT_RHOS,
    HEED_RANGE,
    HEED_S_NOISE,
    RANGE_ONLY,
    SAMPLERS_WITHOUT_ETA,
    draws_further_noise,
    resolved,
)

if TYPE_CHECKING:
    from inference.draw_config import DrawSettings, HiresConfig

Idle = Iterator[tuple[str, str]]
"""(key, why it has no effect)."""

CFG_PLUS_PLUS = "DDIM CFG++"


def idle_settings(settings: DrawSettings, prompt: str | None = None) -> Idle:
    """What has no effect; without a prompt it is taken for one that does not weigh its parts."""
    passes = passes_of(settings)
    samplers = list(dict.fromkeys(sampler for sampler, _ in passes))
    yield from idle_schedule(settings, passes)
    yield from idle_noise(settings, samplers)
    yield from idle_guidance(settings, samplers, prompt)


def idle_hires(hires: HiresConfig) -> Idle:
    """What has no effect in the second pass."""
    if hires.upscale != 2 and (hires.resize_x or hires.resize_y):
        yield "upscale", "has no effect beside resize_x and resize_y"
    if hires.denoising_strength == 0:
        for name in ("steps", "sampler", "schedule_type", "prompt", "negative_prompt"):
            if getattr(hires, name):
                yield name, "has no effect with denoising_strength: 0"


def passes_of(settings: DrawSettings) -> list[tuple[str, str]]:
    """Sampler and schedule type of each pass; the type is empty where nothing heeds it."""
    first = settings.sampler, resolved(settings.sampler, settings.schedule_type)
    if settings.sampler in RANGE_ONLY and settings.img2img is None:
        first = settings.sampler, ""
    hires = settings.hires
    if hires is None or hires.denoising_strength == 0:
        return [first]
    sampler = hires.sampler or settings.sampler
    return [first, (sampler, resolved(sampler, hires.schedule_type or settings.schedule_type))]


def idle_schedule(settings: DrawSettings, passes: Sequence[tuple[str, str]]) -> Idle:
    """Of `schedule_type` and `schedule`."""
    types = {schedule for _, schedule in passes}
    told = " and ".join(f"{sampler}, {schedule or 'any type'}" for sampler, schedule in passes)
    if types == {""} and settings.schedule_type != "Automatic":
        yield "schedule_type", f"has no effect with {settings.sampler}, but for img2img"
    schedule = settings.schedule
    heeding = dict.fromkeys(("sigma_min", "sigma_max", "use_old_karras"), HEED_RANGE)
    heeding |= {"rho": tuple(DEFAULT_RHOS), "beta_alpha": ("Beta",), "beta_beta": ("Beta",)}
    usual = type(schedule)()
    for name, heeded_by in heeding.items():
        if getattr(schedule, name) != getattr(usual, name) and types.isdisjoint(heeded_by):
            names = ", ".join(heeded_by)
            yield f"schedule.{name}", f"has no effect with {told}; it is of {names}"
    if schedule.use_old_karras and schedule.sigma_min and schedule.sigma_max:
        yield "schedule.use_old_karras", "has no effect beside sigma_min and sigma_max"
    always_discards = all(sampler in ALWAYS_DISCARD or not kind for sampler, kind in passes)
    if schedule.discard_next_to_last_sigma and always_discards:
        yield "schedule.discard_next_to_last_sigma", f"has no effect with {told}"


def idle_noise(settings: DrawSettings, samplers: Sequence[str]) -> Idle:
    """Of what is added while drawing, and at the beginning."""
    told = " and ".join(samplers)
    if settings.eta is not None and all(one in SAMPLERS_WITHOUT_ETA for one in samplers):
        yield "eta", f"has no effect with {told}"
    is_churned = settings.s_churn > 0 and any(one in CHURNED for one in samplers)
    if settings.s_churn and not is_churned:
        yield "s_churn", f"has no effect with {told}; it is of {', '.join(CHURNED)}"
    if not settings.s_churn:
        for name in ("s_tmin", "s_tmax"):
            if getattr(settings, name):
                yield name, "has no effect without s_churn"
    is_heeded = is_churned or any(one in HEED_S_NOISE for one in samplers)
    if settings.s_noise != 1 and not is_heeded:
        yield "s_noise", f"has no effect with {told}"
    if settings.ensd:
        eta, s_churn = settings.eta, settings.s_churn
        if not any(draws_further_noise(one, eta, s_churn) for one in samplers):
            yield "ensd", f"has no effect with {told}, which draws no further noise"
    if settings.variation_seed != -1 and settings.variation_strength == 0:
        yield "variation_seed", "has no effect without variation_strength"
    if settings.sgm_noise_multiplier and settings.img2img is not None:
        yield "sgm_noise_multiplier", "has no effect with img2img"
    elif settings.sgm_noise_multiplier and settings.sampler in BY_TIMESTEPS:
        yield "sgm_noise_multiplier", f"has no effect with {settings.sampler}"


def idle_guidance(settings: DrawSettings, samplers: Sequence[str], prompt: str | None) -> Idle:
    """Of what the negative prompt does."""
    weights = [part.weight for part in split_composition(prompt or "")]
    is_guided = settings.cfg_scale != 1 or weights != [1.0] or CFG_PLUS_PLUS in samplers
    if not is_guided:
        for name in ("negative_prompt", "pad_conds", "s_min_uncond", "skip_early_cond"):
            if getattr(settings, name):
                yield name, "has no effect with cfg_scale: 1"
    elif set(samplers) == {CFG_PLUS_PLUS}:
        for name in ("s_min_uncond", "skip_early_cond"):
            if getattr(settings, name):
                yield name, f"has no effect with {CFG_PLUS_PLUS}"
