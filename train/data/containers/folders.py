"""Files of a folder, as a data source: links are followed, what is not meant to be seen is not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from train.common import DataError
from train.data.containers.names import (
    HIDDEN_FOLDERS,
    LOOKS_LIKE_DATA,
    METADATA_TABLE,
    PICTURE_EXTENSIONS,
    READ_BY_EXTRA,
)

IN_HIDDEN_FOLDERS = "in hidden folders"
HIDDEN = "with hidden names"
TWICE = "linked folders that are searched anyway"
ROWS = "rows without file"
MASKS = "masks"
SINGULAR = {
    TWICE: "linked folder that is searched anyway",
    ROWS: "row without file",
    MASKS: "mask",
}


def is_hidden(name: str) -> bool:
    """Return whether file managers and disks hide a file or folder of this name."""
    return name.startswith(".") or name in HIDDEN_FOLDERS


def looks_like_data(name: str) -> bool:
    """Return whether users take a file of this name for an image, a clip or a container."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    is_data = ending in PICTURE_EXTENSIONS or ending in LOOKS_LIKE_DATA
    return is_data and name != METADATA_TABLE


def left_out_line(left_out: Counter[str]) -> str:
    """Return what is left out, in words: `left out: 3 .heic, 2 in hidden folders`."""
    parts = [
        f"{count} {SINGULAR.get(kind, kind) if count == 1 else kind}"
        for kind, count in sorted(left_out.items())
        if count
    ]
    extra = any(left_out[ending] for ending in READ_BY_EXTRA)
    hint = " (pip install 'limner[formats]' reads .heic and .jxl)" if extra else ""
    return f"left out: {', '.join(parts)}{hint}"


def walk(root: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yield all files of a folder, recursively, sorted by path; files are not opened.

    Hidden files and folders are left out (`is_hidden`; `root` itself may be hidden). Links to
    folders are followed, except to a folder that is searched anyway or contains the link, so that
    no file comes twice.

    Args:
        root: the folder.
        left_out: gets the number of files left out that look like data, by kind.

    Raises:
        DataError: a folder cannot be listed.
    """
    return _Walk(root, Counter() if left_out is None else left_out).files(root, False)


Identity = tuple[int, int]
"""Device and inode."""


class _Walk:
    """The state of a search."""

    def __init__(self, root: Path, left_out: Counter[str]) -> None:
        self.root = root
        self.left_out = left_out
        self.seen: set[Identity] | None = None
        """Folders that are searched; None until the first link to a folder."""

    def files(self, folder: Path, is_linked: bool) -> Iterator[Path]:
        """Yield the files of a folder; `is_linked`: a link leads to it or above it."""
        for entry in _listed(folder):
            if is_hidden(entry.name):
                self.count_hidden(entry)
            elif not _is_folder(entry):
                yield folder / entry.name
            elif self.is_new(entry, folder, is_linked):
                yield from self.files(folder / entry.name, is_linked or entry.is_symlink())

    def is_new(self, entry: os.DirEntry[str], folder: Path, is_linked: bool) -> bool:
        """Return whether a folder is to be searched, and note that it is."""
        is_link = entry.is_symlink()
        if not (is_link or is_linked):
            return True
        if self.seen is None:
            self.seen = {_identity(one) for one in _folders(self.root)}
        own = _identity(Path(entry.path))
        if own in self.seen or own in _above(folder):
            self.left_out[TWICE] += is_link
            return False
        self.seen.add(own)
        return True

    def count_hidden(self, entry: os.DirEntry[str]) -> None:
        if not _is_folder(entry):
            self.left_out[HIDDEN] += looks_like_data(entry.name)
        elif not entry.is_symlink():
            names = (name for _, _, inside in os.walk(entry.path) for name in inside)
            self.left_out[IN_HIDDEN_FOLDERS] += sum(map(looks_like_data, names))


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}), so that its files would be missing: "
            "make it readable, or move it out of the data"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it as a file reports it
        return False


def _folders(root: Path) -> Iterator[Path]:
    """Yield a folder and those within it that are searched without following links."""
    yield root
    for entry in _listed(root):
        if not is_hidden(entry.name) and entry.is_dir(follow_symlinks=False):
            yield from _folders(root / entry.name)


def _above(folder: Path) -> set[Identity]:
    """Return the folder and all above it."""
    whole = Path(os.path.realpath(folder))
    return {_identity(one) for one in (whole, *whole.parents)}


def _identity(folder: Path) -> Identity:
    try:
        state = folder.stat()
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    return state.st_dev, state.st_ino


def by_folder(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return files by the folder that they are in."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        found.setdefault(path.parent, []).append(path)
    return found
