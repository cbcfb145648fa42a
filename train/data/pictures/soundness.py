"""Which of a run's pictures can be read: found out before the first step, told all together."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from inference.recipe import RecipeWarning
from train.common import DataError, FetchError
from train.data.pictures.index import Known, picture_facts
from train.data.pictures.reading import NOTES, Header, shown

MOST_NAMED = 10
"""So many broken pictures are told with what is wrong with them."""

Policy = Literal["refuse", "skip"]


def sound_paths(paths: Sequence[Path], policy: Policy, digests: bool = False) -> list[Path]:
    """The pictures that can be used, in the order in which they come.

    With `refuse` the first bytes of each file are looked at. With `skip` every picture is decoded,
    since what is left out must be known before the stream of examples is made: a run that is
    resumed, and each of several processes, find the same. What the index knows is not looked at.

    Args:
        paths: of the pictures.
        policy: what becomes of broken ones.
        digests: whether those will be asked for, so that they are taken in the same pass.

    Raises:
        DataError: with `refuse`, broken ones, all together; with `skip`, nothing else is there.
    """
    wanted = Known.SIZE | (Known.SOUND if policy == "skip" else Known(0))
    facts = picture_facts(paths, wanted | (Known.DIGEST if digests else Known(0)))
    broken = Broken(len(paths), [str(fault) for fault in facts.faults.values()])
    if policy == "refuse":
        broken.refuse()
    if paths and len(facts.faults) == len(paths):
        raise DataError(f"data.broken_pictures: skip leaves nothing: {broken}")
    if broken.messages:
        warnings.warn(f"data.broken_pictures: left out: {broken}", RecipeWarning, stacklevel=2)
    noted = np.flatnonzero(facts.records["notes"]).tolist()
    left = [path for row, path in enumerate(paths) if row not in facts.faults]
    tell_notes([(paths[row], facts.header(row)) for row in noted], len(left))
    return left


def tell_notes(seen: Sequence[tuple[Path, Header]], count: int) -> None:
    """Says what is done with those of so many pictures that are not quite what they seem."""
    for key, told in NOTES.items():
        named = [shown(path) for path, one in seen if key in one.notes]
        if named:
            more = ", …" if len(named) > 3 else ""
            message = f"{len(named)} of {count} pictures {told}: {', '.join(named[:3])}{more}"
            warnings.warn(message, RecipeWarning, stacklevel=3)


class Broken:
    """Pictures or clips that cannot be used, gathered so that all are told at once."""

    def __init__(
        self,
        looked_at: int,
        messages: Sequence[str] = (),
        what: str = "pictures",
        remedy: str = "data.broken_pictures: skip leaves such pictures out",
    ) -> None:
        self.looked_at = looked_at
        self.what = what
        self.remedy = remedy if what == "pictures" else ""
        self.messages = list(messages)

    @contextmanager
    def gathered(self, path: Path | None = None) -> Iterator[None]:
        """Keeps the DataError that comes up within, and goes on; `path` if it does not say it."""
        try:
            yield
        except FetchError:  # it says nothing of the picture
            raise
        except DataError as error:
            self.messages.append(f"{shown(path)}: {error}" if path is not None else str(error))

    def refuse(self) -> None:
        """Raises DataError if there are any."""
        if self.messages:
            raise DataError(f"{self}\n{self.remedy}".rstrip())

    def __str__(self) -> str:
        named = self.messages[:MOST_NAMED]
        more = len(self.messages) - len(named)
        count = f"{len(self.messages)} of {self.looked_at} {self.what} cannot be used:"
        return "\n".join([count, *named, *([f"… and {more} more"] if more else [])])
