"""The order of streamed images: a few shards at a time, each downloaded once per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from train.common import derive_seed, generator
from train.data.examples.stream import BucketStream, Stream
from train.data.streaming import find_shard


class WindowStream:
    """Like `Stream` or `BucketStream`, but images of different windows are never mixed.

    The windows are shuffled in each epoch, and so is each by its own stream: all of it is a
    function of (seed, epoch), independent of what has been downloaded.
    """

    def __init__(
        self,
        seed: int,
        windows: np.ndarray,
        buckets: np.ndarray | None = None,
        batch_size: int = 1,
        first_position: int = 0,
    ) -> None:
        """Divide the slots of an epoch.

        Args:
            seed: seed of all orders.
            windows: (n,), the window of each slot.
            buckets: (n,), the size of each slot's image, as any number; None if all are equal.
            batch_size: examples of a micro-batch, which has one size.
            first_position: sample index at which a later stage starts.
        """
        self.seed = seed
        self.num_pictures = len(windows)
        self.parts: list[tuple[np.ndarray, Stream | BucketStream]] = []
        for number in np.unique(windows).tolist():
            own, key = np.flatnonzero(windows == number), derive_seed(seed, "window", number)
            if buckets is None:
                self.parts.append((own, Stream(key, len(own))))
            else:
                self.parts.append((own, BucketStream(key, buckets[own], batch_size)))
        self.first_position = 0 if buckets is None else first_position
        self._length = sum(len(stream) for _, stream in self.parts)

    def __len__(self) -> int:
        """Return the number of sample indices of an epoch."""
        return self._length

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (epoch, slot) of a sample index."""
        epoch, place = divmod(position - self.first_position, self._length)
        epoch += -(-self.first_position // self._length)
        return epoch, int(_order(self, epoch)[place])


@lru_cache(maxsize=4)
def _order(stream: WindowStream, epoch: int) -> np.ndarray:
    turns = torch.randperm(len(stream.parts), generator=generator(stream.seed, "windows", epoch))
    parts = (stream.parts[turn] for turn in turns.tolist())
    return np.concatenate([own[part.order(epoch)] for own, part in parts]).astype(np.int32)


def windows_of(paths: Sequence[Path], seed: int, size: int) -> np.ndarray | None:
    """Return the number of each image's window; None if nothing is streamed.

    Which shards share a window is drawn once for the run. Images on the disk, in other subsets, are
    distributed over all windows.

    Args:
        paths: the files of the images.
        seed: seed of the draw.
        size: shards per window.
    """
    numbers: dict[Path, int] = {}
    shards = np.full(len(paths), -1, np.int64)
    for row, path in enumerate(paths):
        if (place := find_shard(path)) is not None:
            shards[row] = numbers.setdefault(place.path, len(numbers))
    if not numbers:
        return None
    drawn = torch.randperm(len(numbers), generator=generator(seed, "window shards")).numpy() // size
    here = np.flatnonzero(shards < 0)
    dealt = torch.randperm(len(here), generator=generator(seed, "window others")).numpy()
    windows = drawn[shards]
    windows[here] = dealt % (int(drawn.max()) + 1)
    return windows
