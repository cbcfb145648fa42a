"""Bytes of what training keeps besides weights and activations, with the levers of `memory`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from inference.runtime import InputError
from train.config import OptimizerConfig, TrainMemoryConfig, TrainRecipe
from train.optimization.registry import create_optimizer, is_mean

SMALL = 4096
"""bitsandbytes keeps the state of tensors below this size in 32 bits."""

TINY = 16
"""Longest side of the tensor that tries an optimizer which needs values."""

PLAIN = TrainMemoryConfig()
"""Everything in fp32 and on the device."""

COPIES = 4 + 4
"""Bytes per number of a tensor's fp32 copies while it takes its step: weight and gradient."""
ROUNDING = 4 + 2 + 2 + 1
"""Bytes per number of the draws, of both roundings, and of what chooses between them."""


@dataclass(frozen=True)
class TrainedBytes:
    """Bytes on each device, and on the host."""

    gradients: int
    """Most at once: with a fused backward pass that of the largest tensor."""
    optimizer: int
    """Its state on the device."""
    ema: int
    """The average on the device."""
    step: int
    """Copies of the largest tensor while it takes its step."""
    host: int
    """Optimizer's state and average on the host, with the copies of the largest tensor."""


def trained_bytes(recipe: TrainRecipe, parameters: Sequence[Tensor]) -> TrainedBytes:
    """Return what training keeps for parameters.

    Args:
        recipe: the run's.
        parameters: those that are trained, in the format of training; they need no values.

    Raises:
        InputError: the optimizer cannot take a step.
    """
    memory = recipe.memory
    largest = max(parameters, key=Tensor.numel)
    gradients = sum(one.nbytes for one in parameters)
    optimizer = state_bytes(recipe.optimizer, parameters, memory)
    ema = 4 * sum(one.numel() for one in parameters) if recipe.ema is not None else 0
    step = 0
    if memory.optimizer_on_cpu or memory.trained_weights == "bf16":
        widened = state_bytes(recipe.optimizer, [largest]) - state_bytes(
            recipe.optimizer, [largest], memory
        )
        step = COPIES * largest.numel() + max(0, widened)
        step += ROUNDING * largest.numel() if memory.trained_weights == "bf16" else 0
    host = step + optimizer if memory.optimizer_on_cpu else 0
    host += ema if memory.ema_on_cpu else 0
    return TrainedBytes(
        gradients=largest.nbytes if memory.fused_backward else gradients,
        optimizer=0 if memory.optimizer_on_cpu else optimizer,
        ema=0 if memory.ema_on_cpu else ema,
        step=0 if memory.optimizer_on_cpu else step,
        host=host,
    )


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


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    inner = value.values() if isinstance(value, dict) else value
    for one in inner if isinstance(value, dict | list | tuple) else ():
        yield from _tensors_in(one)
