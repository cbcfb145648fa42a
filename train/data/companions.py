"""Class pictures that come along with pictures of several sizes."""

from functools import lru_cache

import numpy as np

from train.data.stream import BucketStream, Stream, bucket_order
from train.randomness import derive_seed


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
