"""Resolve paths into containers. Each container is opened once per process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.common import DataError
from train.data.containers.members import Archive, Container
from train.data.containers.tars import Tar
from train.data.containers.zips import Zip

if TYPE_CHECKING:
    from train.data.containers.tables import Table

TABLES = (".parquet", ".arrow")
KINDS = (".tar", ".zip", *TABLES)
"""File extensions of containers."""
_INSIDE = re.compile(rf"({'|'.join(map(re.escape, KINDS))})/", re.IGNORECASE)


@dataclass(frozen=True)
class Streaming:
    """Access to containers that are downloaded when they are read (`train.data.streaming`)."""

    shard_of: Callable[[Path], Path | None]
    """Return the streamed container that a path is or leads into; None for other paths."""
    status: Callable[[Path], os.stat_result | None]
    """Return the size and modification time of a path's streamed container; None for other
    paths."""
    open: Callable[[Path], Container]


_streaming: list[Streaming] = []
"""The functions that `register_streaming` was given."""


def register_streaming(streaming: Streaming) -> None:
    """Make streamed containers readable by this module, which is below those that download them."""
    _streaming[:] = [streaming]


def _shard_of(path: Path) -> Path | None:
    return next((found for one in _streaming if (found := one.shard_of(path))), None)


def _is_shard(path: Path) -> bool:
    shard = _shard_of(path)
    return shard is not None and os.fspath(path) == os.fspath(shard)


_opened: dict[str, tuple[tuple[int, int, int], Container]] = {}


def is_container(path: Path) -> bool:
    """Return whether a path is a container, on the disk or in a streamed dataset."""
    return path.suffix.lower() in KINDS and (_is_shard(path) or path.is_file())


def split_path(path: Path) -> tuple[Path, str] | None:
    """Return the container that a path leads into, and the member; None for a plain file."""
    if (shard := _shard_of(path)) is not None:
        member = os.fspath(path)[len(os.fspath(shard)) + 1 :]
        return (shard, member) if member else None
    text = path.as_posix()
    for match in _INSIDE.finditer(text):
        container = text[: match.end() - 1]
        if os.path.isfile(container):  # noqa: PTH113, avoids creating a Path for every read
            return Path(container), text[match.end() :]
    return None


def is_row(path: Path) -> bool:
    """Return whether a path is that of a row of a table."""
    place = split_path(path)
    return place is not None and place[0].suffix.lower() in TABLES


def open_container(path: Path) -> Container:
    """Return the container, cached until its file changes.

    Raises:
        DataError: it is damaged, or of an unknown kind.
        OSError: it cannot be read.
    """
    state = container_status(path)
    same = state.st_size, state.st_mtime_ns, state.st_ino
    known = _opened.get(key := os.fspath(path))
    if known is None or known[0] != same:
        known = _opened[key] = same, _look_into(path)
    return known[1]


def container_status(path: Path) -> os.stat_result:
    """Return the file status of a container, also of a streamed one.

    Raises:
        OSError: there is no such file.
    """
    status = next((found for one in _streaming if (found := one.status(path))), None)
    return path.stat() if status is None else status


def _look_into(path: Path) -> Container:
    ending = path.suffix.lower()
    if _is_shard(path):
        return _streaming[0].open(path)
    if ending not in TABLES:
        return (Tar if ending == ".tar" else Zip)(path)
    from train.data.containers.tables import (  # takes half a second, which few runs need
        Arrow,
        Parquet,
    )

    return (Parquet if ending == ".parquet" else Arrow)(path)


def open_table(path: Path) -> Table:
    """Return the container, whose extension is one of `TABLES`.

    Raises:
        DataError: it is damaged.
        OSError: it cannot be read.
    """
    from train.data.containers.tables import Table

    table = open_container(path)
    assert isinstance(table, Table)
    return table


def open_archive(path: Path) -> Archive:
    """Return the container, which has members with names.

    Raises:
        DataError: it has rows, or is damaged.
        OSError: it cannot be read.
    """
    container = open_container(path)
    if not isinstance(container, Archive):
        raise DataError(f"{path}: has rows, not files with names")
    return container
