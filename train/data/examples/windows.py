"""The order of streamed pictures: a few shards at a time, so that each is fetched once an epoch."""

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
    """As `Stream` or `BucketStream`, but that pictures of different windows are never mixed.

    The windows come in another order in each epoch, and each is shuffled by a stream of its own:
    a function of (seed, epoch) throughout, whatever has been fetched when.
    """

    def __init__(
        self,
        seed: int,
        windows: np.ndarray,
        buckets: np.ndarray | None = None,
        batch_size: int = 1,
        first_position: int = 0,
    ) -> None:
        """Divides the places of an epoch.

        Args:
            seed: of all orders.
            windows: (n,), the number of each place's window.
            buckets: (n,), the size of each place's picture by any number; None where all are alike.
            batch_size: of micro-batches, which are of one size.
            first_position: where they begin, in a later stage.
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
        """Positions of an epoch."""
        return self._length

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, place) at a position of the stream."""
        epoch, place = divmod(position - self.first_position, self._length)
        epoch += -(-self.first_position // self._length)
        return epoch, int(_order(self, epoch)[place])


@lru_cache(maxsize=4)
def _order(stream: WindowStream, epoch: int) -> np.ndarray:
    turns = torch.randperm(len(stream.parts), generator=generator(stream.seed, "windows", epoch))
    parts = (stream.parts[turn] for turn in turns.tolist())
    return np.concatenate([own[part.order(epoch)] for own, part in parts]).astype(np.int32)


def windows_of(paths: Sequence[Path], seed: int, size: int) -> np.ndarray | None:
    """The number of each picture's window; None where nothing is streamed.

    Which shards are together in a window is drawn once for the run. Pictures that lie here, in
    other subsets, are dealt to all windows.

    Args:
        paths: of the pictures.
        seed: of the draw.
        size: shards of a window.
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
