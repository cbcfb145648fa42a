"""Containers of images, and the index of their members."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from train.common import DataError

PICKLES = (".pyd", ".pickle", ".pkl", ".pth", ".pt", ".npy", ".npz")
"""Webdataset's extensions of members that can run code when they are read."""


class Container(ABC):
    """A file that holds others. It is opened for each read, so that any process may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: Counter[str] = Counter()
        """Number of members that are ignored, by kind."""

    @abstractmethod
    def has(self, member: str) -> bool:
        """Return whether a member of this name exists."""

    @abstractmethod
    def read(self, member: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            DataError: it is missing or damaged.
            OSError: the container cannot be read.
        """

    def missing(self, member: str) -> DataError:
        """Return the error for a missing member."""
        return DataError(
            f"{self.path}: there is no {member!r} in it; it is not the container that the run "
            "started with: restore that one, or start over"
        )

    def damaged(self, member: str, why: str) -> DataError:
        """Return the error for a damaged member."""
        return DataError(
            f"{self.path}: {member!r} is damaged ({why}); download or pack the container again"
        )


class Archive(Container):
    """A container whose members have names, like files in folders."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index = MemberIndex(path, self.scan())

    @abstractmethod
    def scan(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name of each file, with its position and properties.

        Raises:
            DataError: the container is damaged.
        """

    def has(self, member: str) -> bool:
        return self.index.find(member) is not None

    def names(self, folder: str = "") -> Iterator[str]:
        """Yield the members in a folder, recursively, in the order of `Path`."""
        return self.index.names(folder)

    def count_left_out(self, name: str) -> None:
        """Count a member that is never opened."""
        ending = name[name.rfind(".") :].lower()
        if ending in PICKLES:
            self.left_out[f"*{ending}"] += 1


class MemberIndex:
    """Sorted names of members with numbers for each, stored in one bytes object and two arrays."""

    def __init__(self, path: Path, members: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Sort the members.

        Raises:
            DataError: a name occurs twice.
        """
        rows = sorted((_key(name), numbers) for name, numbers in members)
        twice = sorted({one[0] for one, two in pairwise(rows) if one[0] == two[0]})
        if twice:
            shown = ", ".join(map(_name, twice[:3])) + (", …" if len(twice) > 3 else "")
            raise DataError(
                f"{path}: duplicate names in it: {shown}; which of them is meant cannot be "
                "known: pack it again with a name of its own for each"
            )
        ends = np.cumsum([0, *(len(key) for key, _ in rows)], dtype=np.int64)
        self._ends = ends
        self._keys = b"".join(key for key, _ in rows)
        self._numbers = np.array([numbers for _, numbers in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def nbytes(self) -> int:
        """Return the memory that the index takes."""
        return len(self._keys) + self._ends.nbytes + self._numbers.nbytes

    def key(self, place: int) -> bytes:
        return self._keys[self._ends[place] : self._ends[place + 1]]

    def find(self, name: str) -> tuple[int, ...] | None:
        """Return the numbers of a member; None if it does not exist."""
        key = _key(name)
        place = bisect_left(range(len(self)), key, key=self.key)
        if place == len(self) or self.key(place) != key:
            return None
        return tuple(self._numbers[place].tolist())

    def names(self, folder: str = "") -> Iterator[str]:
        """Yield the names within a folder."""
        start = _key(folder) + b"\0" if folder else b""
        for place in range(bisect_left(range(len(self)), start, key=self.key), len(self)):
            key = self.key(place)
            if not key.startswith(start):
                return
            yield _name(key)


def _key(name: str) -> bytes:
    """Return the sort key of a name: path order, folder by folder."""
    return name.encode("utf-8", "surrogateescape").replace(b"/", b"\0")


def _name(key: bytes) -> str:
    return key.replace(b"\0", b"/").decode("utf-8", "surrogateescape")


def plain_name(name: str) -> str:
    """Return a member's name as a normalized path: `./a//b.png` is `a/b.png`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
