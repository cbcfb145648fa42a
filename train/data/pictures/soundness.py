"""Validation of a run's images before the first step; all corrupt ones are reported together."""

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
"""Maximum number of corrupt images listed with their error."""

Policy = Literal["refuse", "skip"]


def sound_paths(paths: Sequence[Path], policy: Policy, digests: bool = False) -> list[Path]:
    """Return the usable images in their order.

    With `refuse` the first bytes of each file are read. With `skip` every image is decoded, since
    the skipped ones must be known before the stream of examples is made: a resumed run, and each of
    several processes, find the same. Entries of the index are not read again.

    Args:
        paths: the files of the images.
        policy: what to do with corrupt images.
        digests: whether digests will be needed, so that they are computed in the same pass.

    Raises:
        DataError: with `refuse`, all corrupt images; with `skip`, if no others exist.
    """
    wanted = Known.SIZE | (Known.SOUND if policy == "skip" else Known(0))
    facts = picture_facts(paths, wanted | (Known.DIGEST if digests else Known(0)))
    corrupt = CorruptImages(len(paths), [str(fault) for fault in facts.faults.values()])
    if policy == "refuse":
        corrupt.refuse()
    if paths and len(facts.faults) == len(paths):
        raise DataError(f"data.broken_pictures: skip leaves nothing: {corrupt}")
    if corrupt.messages:
        warnings.warn(f"data.broken_pictures: left out: {corrupt}", RecipeWarning, stacklevel=2)
    noted = np.flatnonzero(facts.records["notes"]).tolist()
    left = [path for row, path in enumerate(paths) if row not in facts.faults]
    warn_of_notes([(paths[row], facts.header(row)) for row in noted], len(left))
    return left


def warn_of_notes(seen: Sequence[tuple[Path, Header]], count: int) -> None:
    """Report what is done with those of `count` images that have notes."""
    for key, note in NOTES.items():
        named = [shown(path) for path, one in seen if key in one.notes]
        if named:
            more = ", …" if len(named) > 3 else ""
            message = f"{len(named)} of {count} pictures {note}: {', '.join(named[:3])}{more}"
            warnings.warn(message, RecipeWarning, stacklevel=3)


class CorruptImages:
    """Collects corrupt images or clips, to report all of them at once."""

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
        """Collect a DataError of the block and continue; `path` is added if the error lacks it."""
        try:
            yield
        except FetchError:  # it says nothing about the image
            raise
        except DataError as error:
            message = f"{shown(path)}: {error}" if path is not None else str(error)
            if message not in self.messages:  # another crop of the same image
                self.messages.append(message)

    def refuse(self) -> None:
        """Raise DataError if there are any."""
        if self.messages:
            raise DataError(f"{self}\n{self.remedy}".rstrip())

    def __str__(self) -> str:
        named = self.messages[:MOST_NAMED]
        more = len(self.messages) - len(named)
        count = f"{len(self.messages)} of {self.looked_at} {self.what} cannot be used:"
        return "\n".join([count, *named, *([f"… and {more} more"] if more else [])])
