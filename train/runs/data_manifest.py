"""The list of the data that a run started with, stored to report later changes in detail.

`data.jsonl.gz` has a line for each image or clip, in the order of the run's list: kind, path, size,
time of change, digest and captions. A digest is stored if the caches have one, with
`cache: disk`.
"""

import gzip
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from inference.files import write_atomically
from inference.runtime import InputError
from train.common import RunDirectoryError
from train.config import DataConfig
from train.data import Known, Picture, file_state, name_of, picture_facts, size_on_disk

SHOWN = 3
"""Maximum number of files listed per kind of change."""

PICTURE, CLASS_PICTURE, HELD_BACK = "picture", "class picture", "validation picture"
"""Kinds of rows."""

NAMES = "surrogateescape"
"""Encoding error handler for file names that are not UTF-8."""

CAPTION_SHOWN = 80
"""Maximum length of a caption in messages."""


class Row(NamedTuple):
    """A line of the list, about an image or clip."""

    kind: str
    """PICTURE, CLASS_PICTURE or HELD_BACK."""
    path: str
    size: Any
    """Bytes; for a folder of frames their names and sizes."""
    changed: int
    """Time of change in nanoseconds."""
    digest: str | None
    captions: list[str]
    mask: Any
    """Path and size of the mask's file, if there is one."""


def rows_of(pictures: Sequence[Picture], config: DataConfig, kind: str = PICTURE) -> Iterator[Row]:
    """Yield the rows of images or clips.

    Args:
        pictures: the list of the run.
        config: determines whether their bytes are hashed anyway.
        kind: the kind of the rows.
    """
    digests = None
    if config.cache == "disk" and config.caches_latents:
        digests = picture_facts([one.path for one in pictures], Known.DIGEST).check()
    for number, one in enumerate(pictures):
        size = size_on_disk(one.path)
        size = size if isinstance(size, int) else [list(file) for file in size]
        mask = None if one.mask is None else [name_of(one.mask), size_on_disk(one.mask)]
        digest = None if digests is None else digests.digest(number)
        changed = file_state(one.path)[1]
        yield Row(kind, name_of(one.path), size, changed, digest, list(one.captions), mask)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the file; the same rows give the same bytes."""

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", NAMES) + b"\n")

    write_atomically(path, write)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Raises:
        OSError: it cannot be read.
        EOFError: it is cut.
        ValueError: it is damaged.
    """
    if not path.stat().st_size:  # which gzip would read as a list without rows
        raise EOFError("it is empty")
    with gzip.open(path, "rt", encoding="utf-8", errors=NAMES) as file:
        for line in file:
            yield Row(*json.loads(line))


@dataclass
class DataChanges:
    """The changes of the data since a run started."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Files with other bytes, and how that is known."""
    captions: list[str] = field(default_factory=list)
    """Files with other captions: old -> new."""
    touched: list[str] = field(default_factory=list)
    """Files of the same size that were written to since; their bytes may be the same."""
    order: bool = False
    """Whether the order of the files has changed."""
    moved: bool = False
    """Whether files are in another folder."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.captions or self.order)

    def lines(self) -> list[str]:
        """Return a line for each kind of change, with its count and the first files."""
        kinds = {
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "other captions": self.captions,
        }
        lines = [f"{len(files)} {kind}: {first(files)}" for kind, files in kinds.items() if files]
        return [*lines, "files are in another order"] if self.order else lines


def first(files: Sequence[str]) -> str:
    """Format the first of several files."""
    return "; ".join(files[:SHOWN]) + ("; …" if len(files) > SHOWN else "")


def changes(before: Iterable[Row], now: Iterable[Row], may_move: bool = False) -> DataChanges:
    """Compare two lists; if all is equal, only one row of each is in memory.

    Args:
        before: the rows that a run started with.
        now: the present ones.
        may_move: compare files of one name in the same place of both lists, wherever they are.
    """
    found = DataChanges()
    old_rows: dict[tuple[str, str], Row] = {}
    new_rows: dict[tuple[str, str], Row] = {}
    for old, new in zip_longest(before, now):
        if old and new and (old[:2] == new[:2] or (may_move and is_moved(old, new))):
            compare(old, new, found)
            found.moved |= old.path != new.path
            continue
        if old:
            old_rows[old[:2]] = old
        if new:
            new_rows[new[:2]] = new
    if old_rows and new_rows and old_rows.keys().isdisjoint(new_rows):
        new_rows, found.moved = moved_back(old_rows, new_rows), True
    found.added = [new.path for key, new in new_rows.items() if key not in old_rows]
    found.removed = [old.path for key, old in old_rows.items() if key not in new_rows]
    for key, old in old_rows.items():
        if key in new_rows:
            compare(old, new_rows[key], found)
    found.order = not (found.added or found.removed) and [*old_rows] != [*new_rows]
    return found


def moved_back(
    old_rows: dict[tuple[str, str], Row], new_rows: dict[tuple[str, str], Row]
) -> dict[tuple[str, str], Row]:
    """Return the present rows under the names that they had if their folder alone was moved."""
    folders = []
    for rows in (old_rows, new_rows):
        parts = [path.split("/")[:-1] for _, path in rows]
        shared = zip(*parts, strict=False)
        common = [names[0] for names in takewhile(lambda names: len({*names}) == 1, shared)]
        folders.append("".join(f"{name}/" for name in common))
    before, now = folders
    return {(kind, before + path[len(now) :]): row for (kind, path), row in new_rows.items()}


def is_moved(old: Row, new: Row) -> bool:
    """Return whether two rows are of the same file, in another folder."""
    return old.kind == new.kind and name_in(old.path) == name_in(new.path)


def name_in(path: str) -> str:
    """Return a file's name without its folder."""
    return path.rpartition("/")[2]


def compare(old: Row, new: Row, found: DataChanges) -> None:
    """Add the differences between two rows of one file."""
    if old.size != new.size:
        found.changed.append(f"{new.path} ({size_text(old.size)} -> {size_text(new.size)})")
    elif old.digest and new.digest:
        if old.digest != new.digest:
            found.changed.append(f"{new.path} (other bytes of the same size)")
    elif old.changed != new.changed:
        found.touched.append(new.path)
    masks = (row.mask and [name_in(row.mask[0]), row.mask[1]] for row in (old, new))
    if next(masks) != next(masks):
        found.changed.append(f"{new.path} (its mask)")
    if old.captions != new.captions:
        was, is_now = (caption_text(row.captions) for row in (old, new))
        found.captions.append(f"{new.path}: {was} -> {is_now}")


def size_text(size: Any) -> str:
    """Format the bytes of a file, or the number of frames of a folder and their bytes together."""
    if isinstance(size, int):
        return f"{size} bytes"
    return f"{len(size)} frames of {sum(one for _, one in size)} bytes"


def caption_text(captions: Sequence[str]) -> str:
    """Format one caption, or the first of several."""
    text = captions[0] if captions else ""
    text = text if len(text) <= CAPTION_SHOWN else f"{text[: CAPTION_SHOWN - 1]}…"
    return repr(text) + (f" (and {len(captions) - 1} more)" if len(captions) > 1 else "")


def data_changes(
    file: Path, kinds: Collection[str], rows: Iterable[Row], may_move: bool = False
) -> DataChanges:
    """Return how rows of some kinds differ from those in a run's file; nothing if there is none.

    Args:
        file: the run's.
        kinds: the kinds to compare.
        rows: the present rows.
        may_move: see `changes`.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    if not file.is_file():
        return DataChanges()
    try:
        before = (row for row in read_rows(file) if row.kind in kinds)
        return changes(before, (row for row in rows if row.kind in kinds), may_move)
    except InputError:  # the images cannot be read
        raise
    except (OSError, ValueError, TypeError, EOFError, zlib.error) as error:
        raise RunDirectoryError(
            f"{file}: damaged ({error}): whether the data are the same is unknown. Restore it; "
            "or delete it, and names, sizes and captions alone are compared"
        ) from error
