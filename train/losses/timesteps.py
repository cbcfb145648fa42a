"""Timesteps drawn in strata: the explicit uniform sampling of CogVideoX (arXiv 2408.06072, 3.3).

The paper ties each process to one interval of the timesteps. Here the strata are dealt anew in
every optimizer step, to all its examples: those of all processes and of all micro-batches. So one
process with accumulation gains as much, and all timesteps are covered for any number of examples.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from train.common import derive_seed, generator

FINENESS = 1 << 32
"""Places within a stratum; with whole numbers none is ever rounded into the next one."""


def stratified_timesteps(
    seed: int, positions: Sequence[int], per_step: int, low: int, high: int, first: int = 0
) -> Tensor:
    """One timestep per position of the run's stream, (b,), int64, on the CPU.

    An optimizer step takes `per_step` positions in a row, and each of them gets one of as many
    equal strata of [low, high). Over many steps all timesteps are equally likely for each of them.
    Class pictures stand at ~p for position p: they share its stratum, at a place of their own.

    Args:
        seed: the run's.
        positions: of the examples in the stream.
        per_step: examples of one optimizer step: processes x accumulation x batch size.
        low: the first timestep.
        high: the one behind the last.
        first: position at which a step begins, where steps of this size do (a recipe's stage).
    """
    span = high - low
    timesteps = []
    for position in positions:
        step, place = divmod((position if position >= 0 else ~position) - first, per_step)
        stratum = _strata(seed, first + step * per_step, per_step)[place]
        within = derive_seed(seed, "in stratum", position) % FINENESS
        timesteps.append(low + (stratum * FINENESS + within) * span // (per_step * FINENESS))
    return torch.tensor(timesteps, dtype=torch.int64)


@lru_cache(maxsize=4)
def _strata(seed: int, begin: int, count: int) -> list[int]:
    """Which stratum each position gets of the optimizer step that begins at position `begin`."""
    return torch.randperm(count, generator=generator(seed, "strata", begin)).tolist()
