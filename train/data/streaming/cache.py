"""The cache of downloaded shards: filled on demand, the least recently used are deleted.

Any number of threads, processes and runs share the folder. A reader of a shard holds a shared lock
on it, a downloader or deleter an exclusive one; making room takes the folder's lock. Shards are
written under another name and renamed when they are complete.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inference.files import write_atomically
from train.common import RESERVE, DataError, FetchError, tell_once
from train.data.containers import (
    METADATA_FILES,
    PICKLES,
    PICTURE_EXTENSIONS,
    Container,
    Parquet,
    Tar,
    holds_bytes,
    holds_texts,
)
from train.data.streaming.remote import REMEDY, download
from train.data.streaming.shards import ENDING, KINDS, Place, find_shard, gib, shard_status

try:
    import fcntl
except ImportError as error:  # Windows
    raise FetchError("data.streaming: needs the file locks of Linux and macOS") from error

PAUSE = 0.1
"""Seconds between two checks for room while all shards are being read."""
LONG = 60.0
"""Seconds after which missing room is reported."""
FRESH = 10.0
"""Seconds in which a failed download is not retried for others that wait for it."""

_failed: dict[Path, tuple[float, str]] = {}


def beside(shard: Path, what: str) -> Path:
    """Return the path of a file beside a shard, which remains when the shard is deleted."""
    return shard.with_name(f".{shard.name}.{what}")


def is_here(shard: Path) -> bool:
    """Return whether the shard itself is on the disk."""
    return shard.is_file() and is_known(shard)


def is_known(shard: Path) -> bool:
    """Return whether the contents of a shard are known: names and captions, but no images."""
    return beside(shard, "known").is_file()


@contextmanager
def held(shard: Path) -> Iterator[None]:
    """Download a shard if necessary, and keep it while the block lasts.

    Raises:
        FetchError: it cannot be downloaded, or there is no room for it.
        DataError: it is damaged.
    """
    lock = beside(shard, "lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise FetchError(f"{lock}: cannot be written: {error.strerror}; {REMEDY}") from error
    with _locked(lock, fcntl.LOCK_SH) as descriptor:
        if is_here(shard):
            os.utime(descriptor)  # time of the last read
            yield
            return
    with _locked(lock, fcntl.LOCK_EX) as descriptor:
        if not is_here(shard):
            when, why = _failed.pop(shard, (-FRESH, ""))
            if time.monotonic() - when < FRESH:
                _failed[shard] = when, why
                raise FetchError(why)
            try:
                _fetch(shard)
            except FetchError as error:
                _failed[shard] = time.monotonic(), str(error)
                raise
        os.utime(descriptor)
        yield


@contextmanager
def _locked(file: Path, how: int) -> Iterator[int]:
    """Hold a lock; raise BlockingIOError if it is not to wait, FetchError if there are no locks."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FetchError(f"{file}: cannot be written: {error.strerror}; {REMEDY}") from error
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise
        except OSError as error:
            raise FetchError(
                f"{file}: this disk has no locks ({error.strerror}); give data.streaming.folder "
                "another one"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _fetch(shard: Path) -> None:
    """Download a shard whose lock is held."""
    place = find_shard(shard)
    assert place is not None
    part = place.path.with_name(f".{place.path.name}.{place.shard.size}.part")
    try:
        _make_room(place, part)
        try:
            download(place.shard, part, place.manifest.commit is not None)
            if not is_known(shard):
                _look_into(part, place)
            with _locked(_room(place.folder.parent), fcntl.LOCK_EX):
                part.replace(shard)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FetchError(f"{part}: cannot be written: {error.strerror}; {REMEDY}") from error


def _look_into(part: Path, place: Place) -> None:
    """Store the contents of a shard.

    Raises:
        DataError: it is damaged.
    """
    try:
        write_known(part, place.path)
    except DataError as error:
        raise DataError(str(error).replace(str(part), place.shard.url)) from error


def _room(root: Path) -> Path:
    """Return the lock of the folder's contents."""
    return root / ".room.lock"


def _make_room(place: Place, part: Path) -> None:
    """Delete shards until there is room for another, and reserve it.

    A download has its size in its name, so that it counts from the beginning.

    Raises:
        FetchError: other data fill the disk.
    """
    root, size, start = place.folder.parent, place.shard.size, time.monotonic()
    while True:
        with _locked(_room(root), fcntl.LOCK_EX):
            for old in (part, place.path):  # left by killed processes
                old.unlink(missing_ok=True)
            kept = _kept(root)
            lacking = sum(kept.values()) + size - place.manifest.disk_bytes
            for one in sorted(kept, key=_last_read) if lacking > 0 else ():
                if _take_away(one):
                    lacking -= kept[one]
                if lacking <= 0:
                    break
            if lacking <= 0:
                free = shutil.disk_usage(root).free - RESERVE
                if free < size:
                    raise FetchError(
                        f"{place.path}: no room on this disk: the shard has {gib(size)}, "
                        f"{gib(max(free, 0))} are free; make room, give a lower "
                        f"data.streaming.disk_gib, or another data.streaming.folder; {REMEDY}"
                    )
                part.touch()
                return
        if time.monotonic() - start > LONG:
            tell_once(f"{root}: waiting for room: all shards in it are being read or fetched")
        time.sleep(PAUSE)


def _kept(root: Path) -> dict[Path, int]:
    """Return the bytes of each shard that is on the disk or being downloaded."""
    found: dict[Path, int] = {}
    for folder in root.glob(f"*{ENDING}"):
        for parent, _, names in os.walk(folder):
            for name in names:
                file = Path(parent, name)
                if name.endswith(".part"):
                    found[file] = int(name.split(".")[-2])
                elif name.lower().endswith(KINDS) and not name.startswith("."):
                    found[file] = file.stat().st_size
    return found


def _shard_of(file: Path) -> Path:
    """Return the shard of a file, which may be its download."""
    if file.suffix != ".part":
        return file
    return file.with_name(file.name[1:].rsplit(".", 2)[0])


def _last_read(file: Path) -> float:
    lock = beside(_shard_of(file), "lock")
    return lock.stat().st_mtime if lock.exists() else 0.0


def _take_away(file: Path) -> bool:
    """Delete a shard, or what a killed process has left of one, unless it is in use."""
    try:
        with _locked(beside(_shard_of(file), "lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
            file.unlink(missing_ok=True)
            return True
    except BlockingIOError:
        return False


def kept_bytes(folder: Path) -> tuple[int, int]:
    """Return (shards, bytes) of a dataset that are on the disk."""
    own = [size for file, size in _kept(folder.parent).items() if file.is_relative_to(folder)]
    return len(own), sum(own)


DAMAGED = OSError, EOFError, zlib.error, ValueError, KeyError, pa.ArrowException
LONGEST_TEXT = 2**16
"""Limit of members that are stored with the contents; metadata files may be longer."""


def open_shard(path: Path) -> Container:
    """Return the container, which is downloaded if it never was.

    Raises:
        FetchError: it cannot be downloaded, or its stored contents are damaged.
        DataError: it is damaged.
    """
    if not is_known(path):
        with held(path):
            pass
    try:
        return (StreamedTar if path.suffix.lower() == ".tar" else StreamedParquet)(path)
    except DataError:
        raise
    except DAMAGED as error:
        raise FetchError(
            f"{beside(path, 'known')}: damaged ({error}); delete it: it is rebuilt from the shard"
        ) from error


def write_known(file: Path, shard: Path) -> None:
    """Store the contents of a shard, which is in a file under another name."""
    if shard.suffix.lower() == ".tar":
        _write_of_tar(file, shard)
    else:
        _write_of_parquet(file, shard)


def _write_of_tar(file: Path, shard: Path) -> None:
    tar = Tar(file)
    names = list(tar.index.names())
    texts = [name for name in names if _is_text(name, tar.index.find(name) or (0, 0))]
    known = {
        "members": [[name, *(tar.index.find(name) or ())] for name in names],
        "left_out": tar.left_out,
        "texts": {name: tar.read(name).decode("utf-8", "surrogateescape") for name in texts},
    }
    packed = gzip.compress(json.dumps(known).encode(), 1)
    write_atomically(beside(shard, "known"), lambda new: new.write_bytes(packed))


def _is_text(name: str, place: tuple[int, ...]) -> bool:
    """Return whether a member is stored; others are read from the shard."""
    if name.lower().endswith((*PICTURE_EXTENSIONS, *PICKLES)):
        return False
    return place[1] <= LONGEST_TEXT or name.rpartition("/")[2] in METADATA_FILES


class StreamedTar(Tar):
    """A tar that is downloaded when an image in it is read."""

    def scan(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        known = json.loads(gzip.decompress(beside(self.path, "known").read_bytes()))
        self.left_out = Counter(known["left_out"])
        self._texts: dict[str, str] = known["texts"]
        for name, *place in known["members"]:
            yield name, tuple(place)

    def read(self, member: str) -> bytes:
        if (text := self._texts.get(member)) is not None:
            return text.encode("utf-8", "surrogateescape")
        if not self.has(member):
            raise self.missing(member)
        with held(self.path):
            return super().read(member)


def _write_of_parquet(file: Path, shard: Path) -> None:
    table = Parquet(file)
    texts = [one.name for one in table.schema if holds_texts(one.type)]
    images = [one.name for one in table.schema if holds_bytes(one.type)]
    lacking = {name: list(table.without_bytes(name)) for name in images}
    with pq.ParquetFile(file, pre_buffer=False) as opened:
        columns = opened.read(columns=texts, use_threads=False)
    columns = columns.replace_schema_metadata({"lacking": json.dumps(lacking)})
    pq.read_metadata(file).write_metadata_file(str(part := beside(shard, "footer.new")))
    part.replace(beside(shard, "footer"))
    write_atomically(beside(shard, "known"), lambda new: pq.write_table(columns, new))


class StreamedParquet(Parquet):
    """A parquet file that is downloaded when an image in it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with pq.ParquetFile(beside(path, "known"), pre_buffer=False) as file:
            self._known = file.read(use_threads=False)

    @property
    def footer(self) -> Path:
        return beside(self.path, "footer")

    @property
    def state(self) -> tuple[int, int]:
        place = find_shard(self.path)
        assert place is not None
        status = shard_status(place.shard)
        return status.st_size, status.st_mtime_ns

    def column(self, name: str) -> Iterator[Any]:
        yield from self._known.column(name).to_pylist()

    def without_bytes(self, name: str) -> Iterator[tuple[int, str | None]]:
        lacking = json.loads((self._known.schema.metadata or {})[b"lacking"])
        yield from map(tuple, lacking[name])

    def _read(self, group: int, name: str) -> pa.ChunkedArray:
        with held(self.path):
            return super()._read(group, name)
