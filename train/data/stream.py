"""The endless stream of examples of a run, and the share of it that each process sees."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from train.randomness import generator


@dataclass(frozen=True)
class Stream:
    """Which picture stands at each position: one shuffled epoch after the other, without gaps."""

    seed: int
    num_pictures: int

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index of the picture) at a position of the stream."""
        epoch, place = divmod(position, self.num_pictures)
        return epoch, int(_order(self.seed, self.num_pictures, epoch)[place])


@lru_cache(maxsize=4)
def _order(seed: int, length: int, epoch: int) -> torch.Tensor:
    return torch.randperm(length, generator=generator(seed, "order", epoch))


@dataclass(frozen=True)
class MicroBatches:
    """The positions of this process's micro-batches, from a step on to the last.

    Micro-batch number (step x accumulation + micro) x processes + rank takes the next positions of
    the stream, so that two processes see in one step what one process sees with twice the
    accumulation. With class pictures, one comes along with each position p, at ~p (-1 for 0, -2
    for 1, …), behind all others.
    """

    batch_size: int
    accumulation: int
    rank: int
    num_processes: int
    start_step: int
    max_steps: int
    with_class_pictures: bool = False
    first_position: int = 0
    """Where the stream begins for them: later stages of a run go on where others end."""

    def __len__(self) -> int:
        return (self.max_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(self.start_step * self.accumulation, self.max_steps * self.accumulation):
            first = (turn * self.num_processes + self.rank) * self.batch_size
            first += self.first_position
            positions = list(range(first, first + self.batch_size))
            yield positions + [~p for p in positions] if self.with_class_pictures else positions
