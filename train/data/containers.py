"""Which container a path leads into. Each is looked at once per process."""

from __future__ import annotations

import os
import re
from pathlib import Path

from train.data.errors import DataError
from train.data.members import Archive, Container
from train.data.tars import Tar
from train.data.zips import Zip

KINDS: dict[str, type[Container]] = {".tar": Tar, ".zip": Zip}
"""Containers by the endings of their names."""
_INSIDE = re.compile(rf"({'|'.join(map(re.escape, KINDS))})/", re.IGNORECASE)

_opened: dict[str, tuple[tuple[int, int, int], Container]] = {}


def is_container(path: Path) -> bool:
    """Whether a path has the ending of a container and is a file."""
    return path.suffix.lower() in KINDS and path.is_file()


def split_path(path: Path) -> tuple[Path, str] | None:
    """The container that a path leads into, and the member; None for a plain file."""
    text = path.as_posix()
    for match in _INSIDE.finditer(text):
        container = text[: match.end() - 1]
        if os.path.isfile(container):  # noqa: PTH113, without making a Path for every reading
            return Path(container), text[match.end() :]
    return None


def open_container(path: Path) -> Container:
    """The container; what is known of it is kept until the file changes.

    Raises:
        DataError: it is damaged, or nothing that can be read.
        OSError: it cannot be read.
    """
    state = path.stat()
    same = state.st_size, state.st_mtime_ns, state.st_ino
    known = _opened.get(key := os.fspath(path))
    if known is None or known[0] != same:
        known = _opened[key] = same, KINDS[path.suffix.lower()](path)
    return known[1]


def open_archive(path: Path) -> Archive:
    """The container, which has members with names.

    Raises:
        DataError: it has rows, or is damaged.
        OSError: it cannot be read.
    """
    container = open_container(path)
    if not isinstance(container, Archive):
        raise DataError(f"{path}: has rows, not files with names")
    return container
