"""The endless stream of examples of a run, and its distribution over processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from train.common import derive_seed, generator


@dataclass(frozen=True)
class Stream:
    """The image at each sample index: one shuffled epoch after the other, without gaps."""

    seed: int
    num_pictures: int

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (epoch, index of the image) of a sample index."""
        epoch, place = divmod(position, self.num_pictures)
        return epoch, int(_order(self.seed, self.num_pictures, epoch)[place])

    def __len__(self) -> int:
        """Return the number of sample indices of an epoch."""
        return self.num_pictures

    def order(self, epoch: int) -> np.ndarray:
        """Return the images of an epoch in order."""
        return _order(self.seed, self.num_pictures, epoch).numpy()


@dataclass(frozen=True)
class InOrder(Stream):
    """Each image at its own sample index, as in validation."""

    def __getitem__(self, position: int) -> tuple[int, int]:
        return 0, position


@lru_cache(maxsize=4)
def _order(seed: int, length: int, epoch: int) -> torch.Tensor:
    return torch.randperm(length, generator=generator(seed, "order", epoch))


@dataclass(frozen=True, eq=False)
class BucketStream:
    """Like `Stream`, for examples of several shapes, as a micro-batch must have one shape.

    Each `batch_size` sample indices that start at a multiple of it have one bucket. An epoch has
    every example once; the last micro-batch of a bucket is filled up with other examples of the
    bucket. The micro-batches of all buckets are shuffled. All of it is a function of (seed,
    epoch).
    """

    seed: int
    buckets: Sequence[int] | np.ndarray
    """The bucket of each example, as any numbers."""
    batch_size: int
    first_position: int = 0
    """Where micro-batches of this size start, in a later stage of a run: the stage's first
    index."""

    @property
    def num_pictures(self) -> int:
        return len(self.buckets)

    @property
    def repeated(self) -> int:
        """Return how many examples occur a second time in an epoch, to fill up micro-batches."""
        return len(self) - self.num_pictures

    @cached_property
    def members(self) -> list[tuple[int, np.ndarray]]:
        """Return each bucket with its examples, both in order."""
        numbers = np.asarray(self.buckets, np.int64)
        kinds, counts = np.unique(numbers, return_counts=True)
        grouped = np.argsort(numbers, kind="stable").astype(np.int32)
        own = np.split(grouped, np.cumsum(counts)[:-1])
        return list(zip(kinds.tolist(), own, strict=True))

    @cached_property
    def _length(self) -> int:
        return sum(-(-len(own) // self.batch_size) * self.batch_size for _, own in self.members)

    def __len__(self) -> int:
        """Return the number of sample indices of an epoch."""
        return self._length

    def order(self, epoch: int) -> np.ndarray:
        """Return the examples of an epoch in order."""
        return bucket_order(self, epoch)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (epoch, index of the example) of a sample index.

        A later stage continues with the first epoch that earlier indices have not started.
        """
        epoch, place = self.find(position)
        return epoch, int(bucket_order(self, epoch)[place])

    def find(self, position: int) -> tuple[int, int]:
        """Return (epoch, index within it) of a sample index."""
        epoch, place = divmod(position - self.first_position, self._length)
        return epoch + -(-self.first_position // self._length), place


@lru_cache(maxsize=4)
def bucket_order(stream: BucketStream, epoch: int) -> np.ndarray:
    """Return the examples of an epoch in order."""
    seed, size, batches = stream.seed, stream.batch_size, []
    for bucket, own in stream.members:
        shuffled = _shuffled(own, seed, "order", epoch, bucket)
        missing = -len(own) % size
        while missing > 0:  # the last micro-batch repeats an example only if it must
            last = shuffled[len(shuffled) // size * size :]
            spare = own[~np.isin(own, last)]
            spare = spare if len(spare) else own
            fillers = _shuffled(spare, seed, "fillers", epoch, bucket, missing)[:missing]
            shuffled = np.concatenate([shuffled, fillers])
            missing -= len(fillers)
        batches.append(shuffled.reshape(-1, size))
    return _shuffled(np.concatenate(batches), seed, "batches", epoch).reshape(-1)


def _shuffled(values: np.ndarray, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """Return the rows of an array in shuffled order."""
    order = torch.randperm(len(values), generator=generator(seed, purpose, *counters))
    return values[order.numpy()]


@dataclass(frozen=True)
class Pace:
    """Maps a sample index to its optimizer step."""

    step_size: int = 1
    """Examples of an optimizer step, over all processes."""
    max_steps: int = 1
    """Optimizer steps of the whole run."""
    first_step: int = 0
    """Step of the run at which these examples start, which also gives their first sample index."""
    first_position: int = 0

    def step(self, position: int) -> int:
        """Return the optimizer steps before the one of a sample index, also for class images."""
        own = position if position >= 0 else ~position
        return self.first_step + (own - self.first_position) // self.step_size


@dataclass(frozen=True)
class MicroBatches:
    """The sample indices of this process's micro-batches, from a step on to the last.

    Micro-batch number (step x accumulation + micro) x processes + rank has the next sample indices
    of the stream, so that two processes see in one step what one process sees with twice the
    accumulation. With class images, one is paired with each sample index p, at ~p (-1 for 0, -2 for
    1, …), after all others.
    """

    batch_size: int
    accumulation: int
    rank: int
    num_processes: int
    start_step: int
    max_steps: int
    with_class_pictures: bool = False
    first_position: int = 0
    """Sample index at which they start: later stages of a run continue where others end."""

    def __len__(self) -> int:
        return (self.max_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(self.start_step * self.accumulation, self.max_steps * self.accumulation):
            first = (turn * self.num_processes + self.rank) * self.batch_size
            first += self.first_position
            positions = list(range(first, first + self.batch_size))
            yield positions + [~p for p in positions] if self.with_class_pictures else positions


class PairedStream:
    """The class image that is paired with each index of a `BucketStream`, of the same size.

    The class images of each size are shuffled in their own epochs, one after the other, without
    gaps, as a function of (seed, sample index).
    """

    def __init__(self, seed: int, stream: BucketStream, numbers: np.ndarray) -> None:
        """Find the class images of each size.

        Args:
            seed: seed of their order.
            stream: the stream that they are paired with.
            numbers: (n,), the bucket of each class picture; every bucket of the stream has one.
        """
        self.stream = stream
        self.members = {kind: np.flatnonzero(numbers == kind) for kind, _ in stream.members}
        self.orders = {
            kind: Stream(derive_seed(seed, "class order", kind), len(own))
            for kind, own in self.members.items()
        }

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (epoch of its size's class images, number of the class image)."""
        kind, turn = bucket_rank(self.stream, position)
        epoch, place = self.orders[kind][turn]
        return epoch, int(self.members[kind][place])


def bucket_rank(stream: BucketStream, position: int) -> tuple[int, int]:
    """Return the bucket at a sample index, and its earlier occurrences in all epochs."""
    epoch, place = stream.find(position)
    kinds, ranks, counts = _ranks(stream, epoch)
    kind = int(kinds[place])
    return kind, epoch * counts[kind] + int(ranks[place])


@lru_cache(maxsize=4)
def _ranks(stream: BucketStream, epoch: int) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """Return for each index of an epoch its bucket and earlier occurrences, and all totals."""
    kinds = np.asarray(stream.buckets)[bucket_order(stream, epoch)]
    ranks = np.empty(len(kinds), np.int64)
    counts: dict[int, int] = {}
    for kind, _ in stream.members:
        places = np.flatnonzero(kinds == kind)
        ranks[places] = np.arange(len(places))
        counts[kind] = len(places)
    return kinds, ranks, counts
