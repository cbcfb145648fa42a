"""Optimizers and LR schedules by name: decorators that register one, and the options in recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inference.recipe import typed_options
from inference.runtime import InputError
from train.config import (
    LR_SCHEDULES,
    OPTIMIZERS,
    OptimizerConfig,
    Registry,
    TrainMemoryConfig,
    function_of,
)

SMALL = 4096
"""bitsandbytes keeps the state of tensors below this size in 32 bits."""

TINY = 16
"""Longest side of the tensor that tries an optimizer which needs values."""

PLAIN = TrainMemoryConfig()
"""Everything in fp32 and on the device."""

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


def state_bytes(
    config: OptimizerConfig,
    parameters: Iterable[Tensor],
    memory: TrainMemoryConfig = PLAIN,
) -> int:
    """Return the size of the state that an optimizer keeps for tensors.

    AdamW keeps two means in fp32, or in 8 bits with block scales; others are measured. Means of the
    weight's shape are bf16 with `memory.trained_weights: bf16`.

    Raises:
        InputError: the optimizer cannot take a step.
    """
    is_half = memory.trained_weights == "bf16"
    kept = 2 if is_half and memory.rounding == "kahan" else 0
    parameters = list(parameters)
    lost = sum(kept * one.numel() for one in parameters)
    if config.is_ours:
        itemsize = 2 if is_half else 4
        return lost + sum(_adamw_bytes(config.type, one.numel(), itemsize) for one in parameters)
    hashed = _Hashed(config, json.dumps(config.options, sort_keys=True, default=str))
    return lost + sum(_tried_bytes(hashed, tuple(one.shape), is_half) for one in parameters)


def _adamw_bytes(kind: str, numbers: int, itemsize: int) -> int:
    if kind == "adamw8bit" and numbers >= SMALL:
        return 2 * numbers + 2 * 4 * -(-numbers // 256)
    return 2 * itemsize * numbers


class _Hashed:
    """A config as the key of a cache."""

    def __init__(self, config: OptimizerConfig, options: str) -> None:
        self.config = config
        self.key = config.type, options, str(config.changed())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.key == other.key


@cache
def _tried_bytes(hashed: _Hashed, shape: tuple[int, ...], is_half: bool) -> int:
    """Return the size of the state after one step on a tensor without values, or a tiny one."""
    try:
        return _bytes_after_step(hashed.config, torch.ones(shape, device="meta"), is_half)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # it needs values
        return _extrapolated_bytes(hashed.config, shape, is_half)


def _extrapolated_bytes(config: OptimizerConfig, shape: tuple[int, ...], is_half: bool) -> int:
    """Extrapolate the size of the state from that of tiny tensors.

    It is assumed to be linear in each side: of a matrix in both (a mean as large as the matrix), or
    in one of them (means of rows, means of columns).
    """
    sides = [[(side, 1.0)] if side <= TINY else _weights(side) for side in shape]
    size = 0.0
    for corner in product(*sides):
        tiny = torch.ones([side for side, _ in corner])
        try:
            with torch.random.fork_rng(devices=[]):
                size += prod(weight for _, weight in corner) * _bytes_after_step(
                    config, tiny, is_half
                )
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"optimizer.type: {config.type} cannot take a step: {why}") from error
    return round(size)


def _weights(side: int) -> list[tuple[int, float]]:
    """Return two tiny sides, and their weights for extrapolating to a longer one."""
    beyond = (side - TINY) / (TINY // 2)
    return [(TINY // 2, -beyond), (TINY, 1 + beyond)]


def _bytes_after_step(config: OptimizerConfig, value: Tensor, is_half: bool) -> int:
    parameter = nn.Parameter(value)
    parameter.grad = torch.ones_like(value)
    tried = create_optimizer(config, [{"params": [parameter]}])
    tried.step()
    kept = _tensors_in(tried.state[parameter])
    return sum(one.nbytes // (2 if is_half and is_mean(one, value) else 1) for one in kept)


def is_mean(value: Any, weight: Tensor) -> bool:
    """Return whether a part of a weight's state is an fp32 mean of its shape, bf16 in a run."""
    is_like = isinstance(value, Tensor) and value.shape == weight.shape and value.ndim > 0
    return is_like and value.dtype == torch.float32


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    inner = value.values() if isinstance(value, dict) else value
    for one in inner if isinstance(value, dict | list | tuple) else ():
        yield from _tensors_in(one)
