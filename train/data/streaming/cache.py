"""The shards that are kept here: fetched when they are needed, the ones unused for longest go.

Any number of threads, processes and runs share the folder. Who reads a shard holds a shared lock on
it, who fetches it or takes it away an exclusive one; who makes room holds the folder's. Shards are
written under another name and renamed when they are whole.
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
"""Seconds between two looks for room, while all that is here is being read."""
LONG = 60.0
"""Seconds after which it is told that there is no room."""
FRESH = 10.0
"""Seconds in which a fetch that has failed is not begun again for those that wait for it too."""

_failed: dict[Path, tuple[float, str]] = {}


def beside(shard: Path, what: str) -> Path:
    """A file beside a shard, which stays when the shard goes."""
    return shard.with_name(f".{shard.name}.{what}")


def is_here(shard: Path) -> bool:
    """Whether the shard itself need not be fetched."""
    return shard.is_file() and is_known(shard)


def is_known(shard: Path) -> bool:
    """Whether it is known what is in a shard: names and captions, but no pictures."""
    return beside(shard, "known").is_file()


@contextmanager
def held(shard: Path) -> Iterator[None]:
    """The shard is here, and stays as long as the block lasts.

    Raises:
        FetchError: it cannot be fetched, or there is no room for it.
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
            os.utime(descriptor)  # when it was read last
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
    """Has a lock; raises BlockingIOError if it shall not wait, FetchError if there are no locks."""
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
    """Brings a shard here; its lock is held."""
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
    """Keeps what is known of a shard.

    Raises:
        DataError: it is damaged.
    """
    try:
        write_known(part, place.path)
    except DataError as error:
        raise DataError(str(error).replace(str(part), place.shard.url)) from error


def _room(root: Path) -> Path:
    """The lock of who changes what is there."""
    return root / ".room.lock"


def _make_room(place: Place, part: Path) -> None:
    """Takes shards away until there is room for another, and reserves it.

    What is being fetched has its bytes in its name, so that they count from the beginning.

    Raises:
        FetchError: the disk is full of other things.
    """
    root, size, start = place.folder.parent, place.shard.size, time.monotonic()
    while True:
        with _locked(_room(root), fcntl.LOCK_EX):
            for old in (part, place.path):  # of who was killed
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
    """The bytes of each shard that is here, or will be as soon as it is fetched."""
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
    """A shard, also by what is being fetched of it."""
    if file.suffix != ".part":
        return file
    return file.with_name(file.name[1:].rsplit(".", 2)[0])


def _last_read(file: Path) -> float:
    lock = beside(_shard_of(file), "lock")
    return lock.stat().st_mtime if lock.exists() else 0.0


def _take_away(file: Path) -> bool:
    """Deletes a shard, or what a process that was killed has left of one, unless it is in use."""
    try:
        with _locked(beside(_shard_of(file), "lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
            file.unlink(missing_ok=True)
            return True
    except BlockingIOError:
        return False


def kept_bytes(folder: Path) -> tuple[int, int]:
    """(shards, bytes) of a dataset that are here."""
    own = [size for file, size in _kept(folder.parent).items() if file.is_relative_to(folder)]
    return len(own), sum(own)


DAMAGED = OSError, EOFError, zlib.error, ValueError, KeyError, pa.ArrowException
LONGEST_TEXT = 2**16
"""Bytes of members that are kept with what is known; metadata files may be longer."""


def open_shard(path: Path) -> Container:
    """The container; it is fetched if it never was.

    Raises:
        FetchError: it cannot be fetched, or what is kept of it is damaged.
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
            f"{beside(path, 'known')}: damaged ({error}); delete it: it is made anew from the shard"
        ) from error


def write_known(file: Path, shard: Path) -> None:
    """Keeps what is known of a shard, which is in a file under another name."""
    if shard.suffix.lower() == ".tar":
        _write_of_tar(file, shard)
    else:
        _write_of_parquet(file, shard)


def _write_of_tar(file: Path, shard: Path) -> None:
    tar = Tar(file)
    names = list(tar.index.names())
    texts = [name for name in names if _is_text(name, tar.index.find(name) or (0, 0))]
    told = {
        "members": [[name, *(tar.index.find(name) or ())] for name in names],
        "left_out": tar.left_out,
        "texts": {name: tar.read(name).decode("utf-8", "surrogateescape") for name in texts},
    }
    packed = gzip.compress(json.dumps(told).encode(), 1)
    write_atomically(beside(shard, "known"), lambda new: new.write_bytes(packed))


def _is_text(name: str, place: tuple[int, ...]) -> bool:
    """Whether a member is kept; others are read out of the shard."""
    if name.lower().endswith((*PICTURE_EXTENSIONS, *PICKLES)):
        return False
    return place[1] <= LONGEST_TEXT or name.rpartition("/")[2] in METADATA_FILES


class StreamedTar(Tar):
    """A tar that is fetched when a picture in it is read."""

    def scan(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        told = json.loads(gzip.decompress(beside(self.path, "known").read_bytes()))
        self.left_out = Counter(told["left_out"])
        self._texts: dict[str, str] = told["texts"]
        for name, *place in told["members"]:
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
    """A parquet file that is fetched when a picture in it is read."""

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
