"""LR schedules: the factor of a learning rate by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from inference.recipe import takes, typed_options
from inference.runtime import InputError
from train.config import LR_SCHEDULES, LRSchedulerConfig, function_of, parse_schedule
from train.optimization.registry import lr_schedule

Course = Callable[[int], float]
"""Step, from 0 on -> factor of the base learning rate."""


def rate_course(config: LRSchedulerConfig, rate: float, steps: int) -> Course:
    """Return the factor of the base learning rate `rate` at each step.

    Raises:
        InputError: torch's scheduler rejects its options, or changes more than the rate.
    """
    function = function_of(config.type, LR_SCHEDULES)
    if isinstance(function, type):
        options = typed_options(function, config.options)
        course = _scheduler_course(config.type, function, options, rate or 1.0, steps)
        return _warmed_up(course, config.warmup_steps)
    if isinstance(LR_SCHEDULES.get(config.type), str):
        keys = {"num_cycles": config.num_cycles, "power": config.power, "schedule": config.schedule}
        options = {key: value for key, value in keys.items() if takes(function, key)}
    else:
        options = typed_options(function, config.options)
    facts = {"steps": steps, "warmup_steps": config.warmup_steps, "rate": rate}
    known = {name: value for name, value in facts.items() if takes(function, name)}
    course = function(**known, **options)
    return course if "warmup_steps" in known else _warmed_up(course, config.warmup_steps)


def _warmed_up(course: Course, warmup_steps: int) -> Course:
    """Return a schedule whose first steps rise linearly from 0."""
    if not warmup_steps:
        return course
    return lambda step: course(step) * min(1.0, step / warmup_steps)


def _scheduler_course(
    kind: str, create: type[LRScheduler], options: dict[str, Any], rate: float, steps: int
) -> Course:
    """Return the schedule of one of torch's schedulers, by stepping it through the run."""
    optimizer = _any_optimizer(rate)
    before = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    factors: list[float] = []
    try:
        lr_scheduler = create(optimizer, **options)
        while len(factors) <= steps:
            factors.append(float(optimizer.param_groups[0]["lr"]) / rate)
            optimizer.step()
            lr_scheduler.step()
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        if len(factors) < steps:
            raise InputError(f"lr_scheduler.options: {kind} refuses them: {error}") from error
    changed = [key for key, value in before.items() if optimizer.param_groups[0].get(key) != value]
    others = [key for key in changed if key != "lr"]
    if others:
        raise InputError(
            f"lr_scheduler.type: {kind} changes {', '.join(others)} too, and here only the "
            "learning rate follows it; switch that off in lr_scheduler.options "
            "(cycle_momentum: false)"
        )
    return lambda step: factors[min(step, len(factors) - 1)]


def _any_optimizer(rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)


def _usual(name: str, steps: int, warmup_steps: int, rate: float = 1.0, **options: float) -> Course:
    """Return a schedule of the transformers library."""
    from transformers.optimization import get_scheduler

    lr_scheduler = get_scheduler(
        name,
        _any_optimizer(rate),
        num_warmup_steps=warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs=options,
    )
    assert isinstance(lr_scheduler, LambdaLR)
    return lr_scheduler.lr_lambdas[0]


@lr_schedule("constant")
def constant(steps: int, warmup_steps: int) -> Course:
    """Keep the rate constant."""
    return _usual("constant_with_warmup", steps, warmup_steps)


@lr_schedule("linear")
def linear(steps: int, warmup_steps: int) -> Course:
    """Decrease linearly to 0."""
    return _usual("linear", steps, warmup_steps)


@lr_schedule("cosine")
def cosine(steps: int, warmup_steps: int) -> Course:
    """Decrease to 0 along half a cosine."""
    return _usual("cosine", steps, warmup_steps)


@lr_schedule("cosine_with_restarts")
def cosine_with_restarts(steps: int, warmup_steps: int, num_cycles: int = 1) -> Course:
    """Decrease to 0 along half a cosine, several times."""
    return _usual("cosine_with_restarts", steps, warmup_steps, num_cycles=num_cycles)


@lr_schedule("polynomial")
def polynomial(rate: float, steps: int, warmup_steps: int, power: float = 1.0) -> Course:
    """Decrease by a power of the remaining part, to 1e-7."""
    return _usual("polynomial", steps, warmup_steps, rate or 1.0, power=power)


@lr_schedule("schedule")
def schedule(rate: float, warmup_steps: int, schedule: str) -> Course:
    """Follow A1111's rates by step, warmed up if asked; the first step is step 0."""
    entries = parse_schedule(schedule)

    def factor(step: int) -> float:
        value = next((value for value, until in entries if until is None or step < until), 0.0)
        warmth = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return value / rate * warmth

    return factor
