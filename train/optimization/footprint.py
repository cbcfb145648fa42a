"""Bytes of what training keeps besides weights and activations, with the levers of `memory`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from train.config import TrainRecipe
from train.optimization.registry import state_bytes

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
