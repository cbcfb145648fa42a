"""Timesteps drawn in strata: the explicit uniform sampling of CogVideoX (arXiv 2408.06072, 3.3).

The paper ties each process to one interval of the timesteps. Here the strata are reassigned
in every optimizer step, to all its examples: those of all processes and of all micro-batches. So
one
process with accumulation gains as much, and all timesteps are covered for any number of examples.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from train.common import derive_seed, generator

FINENESS = 1 << 32
"""Positions within a stratum; being integers, none is ever rounded into the next one."""


def stratified_timesteps(
    seed: int, positions: Sequence[int], per_step: int, low: int, high: int, first: int = 0
) -> Tensor:
    """Return one timestep per sample index of the run, (b,), int64, on the CPU.

    An optimizer step has `per_step` consecutive sample indices, each with one of as many
    equal strata of [low, high). Over many steps all timesteps are equally likely for each of them.
    Class images have index ~p for sample index p: they share its stratum, at another position.

    Args:
        seed: the run's.
        positions: sample indices.
        per_step: examples of one optimizer step: processes x accumulation x batch size.
        low: the first timestep.
        high: the one after the last.
        first: sample index at which a step begins, with steps of this size (a recipe's stage).
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
    """Return the stratum of each sample index in the optimizer step that begins at `begin`."""
    return torch.randperm(count, generator=generator(seed, "strata", begin)).tolist()
