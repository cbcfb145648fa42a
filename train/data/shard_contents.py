"""What is in streamed shards, as far as it is known without them.

When a shard is fetched, all but its pictures is kept beside it: of a tar the names, the places and
the bytes of captions, of a parquet file its footer and the columns of texts. So it is fetched for
its pictures only.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inference.files import write_atomically
from train.data.columns import holds_bytes, holds_texts
from train.data.errors import DataError, FetchError
from train.data.members import PICKLES, Container
from train.data.metadata import METADATA_FILES
from train.data.places import PICTURE_EXTENSIONS
from train.data.shard_cache import beside, held, is_known
from train.data.shards import find_shard, shard_status
from train.data.tables import Parquet
from train.data.tars import Tar

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
