"""Containers of pictures, and the index of what lies where in one."""

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
"""Webdataset's endings of what only code that comes along can read."""


class Container(ABC):
    """A file that holds others. Opened for each reading, so that any process may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: Counter[str] = Counter()
        """What is in it that nothing is made of, by kind."""

    @abstractmethod
    def has(self, member: str) -> bool:
        """Whether there is a member of this name."""

    @abstractmethod
    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            DataError: there is none, or it is damaged.
            OSError: the container cannot be read.
        """

    def missing(self, member: str) -> DataError:
        """What to raise where there is no such member."""
        return DataError(
            f"{self.path}: there is no {member!r} in it; it is not the container that the run "
            "began with: put that one in its place, or begin anew"
        )

    def damaged(self, member: str, why: str) -> DataError:
        """What to raise where a member is not what it should be."""
        return DataError(
            f"{self.path}: {member!r} is damaged ({why}); download or pack the container again"
        )


class Archive(Container):
    """A container whose members have names, as files in folders do."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index = MemberIndex(path, self.scan())

    @abstractmethod
    def scan(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name of each file in it, and where and what it is.

        Raises:
            DataError: the container is damaged.
        """

    def has(self, member: str) -> bool:
        return self.index.find(member) is not None

    def names(self, folder: str = "") -> Iterator[str]:
        """The members in a folder and in those within it, in the order of `Path`."""
        return self.index.names(folder)

    def count_left_out(self, name: str) -> None:
        """Counts what is never opened."""
        ending = name[name.rfind(".") :].lower()
        if ending in PICKLES:
            self.left_out[f"*{ending}"] += 1


class MemberIndex:
    """Names of members, sorted, and numbers for each; one block of bytes and two arrays."""

    def __init__(self, path: Path, members: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Sorts them.

        Raises:
            DataError: a name comes twice.
        """
        rows = sorted((_key(name), numbers) for name, numbers in members)
        twice = sorted({one[0] for one, two in pairwise(rows) if one[0] == two[0]})
        if twice:
            shown = ", ".join(map(_name, twice[:3])) + (", …" if len(twice) > 3 else "")
            raise DataError(
                f"{path}: names that come twice in it: {shown}; which of them is meant cannot be "
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
        """What it takes in memory."""
        return len(self._keys) + self._ends.nbytes + self._numbers.nbytes

    def key(self, place: int) -> bytes:
        return self._keys[self._ends[place] : self._ends[place + 1]]

    def find(self, name: str) -> tuple[int, ...] | None:
        """The numbers of a member; None if there is none."""
        key = _key(name)
        place = bisect_left(range(len(self)), key, key=self.key)
        if place == len(self) or self.key(place) != key:
            return None
        return tuple(self._numbers[place].tolist())

    def names(self, folder: str = "") -> Iterator[str]:
        """The names that begin with a folder."""
        start = _key(folder) + b"\0" if folder else b""
        for place in range(bisect_left(range(len(self)), start, key=self.key), len(self)):
            key = self.key(place)
            if not key.startswith(start):
                return
            yield _name(key)


def _key(name: str) -> bytes:
    """What names are sorted by, so that they come as paths do: folder by folder."""
    return name.encode("utf-8", "surrogateescape").replace(b"/", b"\0")


def _name(key: bytes) -> str:
    return key.replace(b"\0", b"/").decode("utf-8", "surrogateescape")


def plain_name(name: str) -> str:
    """A member's name as a path within the container has it: `./a//b.png` is `a/b.png`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
