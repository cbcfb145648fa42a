"""Optimizers and LR schedules by name: decorators that register one, and the options in recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from inference.recipe import typed_options
from train.config import (
    LR_SCHEDULES,
    OPTIMIZERS,
    OptimizerConfig,
    Registry,
    function_of,
)

F = TypeVar("F", bound=Callable[..., Any])

Groups = Sequence[Mapping[str, object]]
"""Parameter groups, as torch's optimizers take them."""


def optimizer(name: str) -> Callable[[F], F]:
    """Return the decorator that registers an optimizer as `optimizer.type: name`.

    The function or class takes the parameter groups, `lr`, and options: parameters with types and
    defaults, which `optimizer.options` sets.
    """
    return _adding(OPTIMIZERS, name)


def lr_schedule(name: str) -> Callable[[F], F]:
    """Return the decorator that registers an LR schedule as `lr_scheduler.type: name`.

    The function returns the factor of the learning rate by step. It may take `steps` (of the run),
    `warmup_steps` (else Limner warms up linearly), `rate` (the base learning rate), and options,
    which `lr_scheduler.options` sets.
    """
    return _adding(LR_SCHEDULES, name)


def _adding(registry: Registry, name: str) -> Callable[[F], F]:
    """Return the decorator that adds a function to a registry that does not list it already.

    It raises ValueError if the name is that of a built-in one.
    """

    def add(function: F) -> F:
        place = registry.get(name)
        if not isinstance(place, str):
            registry[name] = function
        elif place != f"{function.__module__}:{function.__name__}":
            raise ValueError(f"{name!r} is built in; choose another name")
        return function

    return add


def create_optimizer(config: OptimizerConfig, groups: Groups) -> Optimizer:
    """Return the optimizer of a valid config."""
    create = function_of(config.type, OPTIMIZERS)
    if config.is_ours:
        usual = {"betas": tuple(config.betas), "weight_decay": config.weight_decay}
        return create(groups, lr=config.learning_rate, **usual, eps=config.epsilon)
    options = typed_options(create, {**config.passed(), **config.options})
    return create([dict(group) for group in groups], lr=config.learning_rate, **options)


def is_mean(value: Any, weight: Tensor) -> bool:
    """Return whether a part of a weight's state is an fp32 mean of its shape, bf16 in a run."""
    is_like = isinstance(value, Tensor) and value.shape == weight.shape and value.ndim > 0
    return is_like and value.dtype == torch.float32
