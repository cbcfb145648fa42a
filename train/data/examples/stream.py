"""The endless stream of examples of a run, and the share of it that each process sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from train.common import derive_seed, generator


@dataclass(frozen=True)
class Stream:
    """Which picture stands at each position: one shuffled epoch after the other, without gaps."""

    seed: int
    num_pictures: int

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index of the picture) at a position of the stream."""
        epoch, place = divmod(position, self.num_pictures)
        return epoch, int(_order(self.seed, self.num_pictures, epoch)[place])

    def __len__(self) -> int:
        """Positions of an epoch."""
        return self.num_pictures

    def order(self, epoch: int) -> np.ndarray:
        """The pictures of an epoch, position by position."""
        return _order(self.seed, self.num_pictures, epoch).numpy()


@dataclass(frozen=True)
class InOrder(Stream):
    """Each picture at its own place, as validation looks at them."""

    def __getitem__(self, position: int) -> tuple[int, int]:
        return 0, position


@lru_cache(maxsize=4)
def _order(seed: int, length: int, epoch: int) -> torch.Tensor:
    return torch.randperm(length, generator=generator(seed, "order", epoch))


@dataclass(frozen=True, eq=False)
class BucketStream:
    """As `Stream`, for examples of several shapes, where a micro-batch must be of one shape.

    Each `batch_size` positions that begin at a multiple of it are of one bucket. An epoch has every
    example once; what is missing to a bucket's last micro-batch is filled up with others of the
    bucket. The micro-batches of all buckets are shuffled. A function of (seed, epoch) throughout.
    """

    seed: int
    buckets: Sequence[int] | np.ndarray
    """The bucket of each example, by any numbers."""
    batch_size: int
    first_position: int = 0
    """Where micro-batches of this size begin, in a later stage of a run: that of its first one."""

    @property
    def num_pictures(self) -> int:
        return len(self.buckets)

    @property
    def repeated(self) -> int:
        """How many examples come a second time in an epoch, to fill up micro-batches."""
        return len(self) - self.num_pictures

    @cached_property
    def members(self) -> list[tuple[int, np.ndarray]]:
        """Each bucket with the examples in it, both in order."""
        numbers = np.asarray(self.buckets, np.int64)
        kinds, counts = np.unique(numbers, return_counts=True)
        grouped = np.argsort(numbers, kind="stable").astype(np.int32)
        own = np.split(grouped, np.cumsum(counts)[:-1])
        return list(zip(kinds.tolist(), own, strict=True))

    @cached_property
    def _length(self) -> int:
        return sum(-(-len(own) // self.batch_size) * self.batch_size for _, own in self.members)

    def __len__(self) -> int:
        """Positions of an epoch."""
        return self._length

    def order(self, epoch: int) -> np.ndarray:
        """The examples of an epoch, position by position."""
        return bucket_order(self, epoch)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index of the example) at a position of the stream.

        A later stage goes on with the first epoch that earlier positions have not begun.
        """
        epoch, place = self.find(position)
        return epoch, int(bucket_order(self, epoch)[place])

    def find(self, position: int) -> tuple[int, int]:
        """(epoch, place within it) of a position."""
        epoch, place = divmod(position - self.first_position, self._length)
        return epoch + -(-self.first_position // self._length), place


@lru_cache(maxsize=4)
def bucket_order(stream: BucketStream, epoch: int) -> np.ndarray:
    """The examples of an epoch, position by position."""
    seed, size, batches = stream.seed, stream.batch_size, []
    for bucket, own in stream.members:
        shuffled = _shuffled(own, seed, "order", epoch, bucket)
        missing = -len(own) % size
        while missing > 0:  # the last micro-batch has no example twice unless it must
            last = shuffled[len(shuffled) // size * size :]
            spare = own[~np.isin(own, last)]
            spare = spare if len(spare) else own
            fillers = _shuffled(spare, seed, "fillers", epoch, bucket, missing)[:missing]
            shuffled = np.concatenate([shuffled, fillers])
            missing -= len(fillers)
        batches.append(shuffled.reshape(-1, size))
    return _shuffled(np.concatenate(batches), seed, "batches", epoch).reshape(-1)


def _shuffled(values: np.ndarray, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """The rows of an array in another order."""
    order = torch.randperm(len(values), generator=generator(seed, purpose, *counters))
    return values[order.numpy()]


@dataclass(frozen=True)
class Pace:
    """Which optimizer step a position of the stream belongs to."""

    step_size: int = 1
    """Examples of an optimizer step, of all processes."""
    max_steps: int = 1
    """Optimizer steps of the whole run."""
    first_step: int = 0
    """Step of the run at which these examples begin, and their first position."""
    first_position: int = 0

    def step(self, position: int) -> int:
        """Optimizer steps before the one that takes a position; of class pictures too."""
        own = position if position >= 0 else ~position
        return self.first_step + (own - self.first_position) // self.step_size


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


class CompanionStream:
    """Which class picture comes along with each position of a `BucketStream`: one of its size.

    Each size has its class pictures in shuffled epochs of their own, one after the other, without
    gaps, as a function of (seed, position).
    """

    def __init__(self, seed: int, stream: BucketStream, numbers: np.ndarray) -> None:
        """Finds the class pictures of each size.

        Args:
            seed: of their order.
            stream: what they come along with.
            numbers: (n,), the bucket of each class picture; every bucket of the stream has one.
        """
        self.stream = stream
        self.members = {kind: np.flatnonzero(numbers == kind) for kind, _ in stream.members}
        self.orders = {
            kind: Stream(derive_seed(seed, "class order", kind), len(own))
            for kind, own in self.members.items()
        }

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch of its size's class pictures, number of the class picture)."""
        kind, turn = turn_of(self.stream, position)
        epoch, place = self.orders[kind][turn]
        return epoch, int(self.members[kind][place])


def turn_of(stream: BucketStream, position: int) -> tuple[int, int]:
    """The bucket at a position, and how many positions of it come before in all epochs."""
    epoch, place = stream.find(position)
    kinds, ranks, counts = _ranks(stream, epoch)
    kind = int(kinds[place])
    return kind, epoch * counts[kind] + int(ranks[place])


@lru_cache(maxsize=4)
def _ranks(stream: BucketStream, epoch: int) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """The bucket at each place of an epoch, how many of it come before, and how many there are."""
    kinds = np.asarray(stream.buckets)[bucket_order(stream, epoch)]
    ranks = np.empty(len(kinds), np.int64)
    counts: dict[int, int] = {}
    for kind, _ in stream.members:
        places = np.flatnonzero(kinds == kind)
        ranks[places] = np.arange(len(places))
        counts[kind] = len(places)
    return kinds, ranks, counts
