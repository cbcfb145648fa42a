"""Tables of images: parquet files, and the Arrow files of Hugging Face's `datasets`.

The image of a row has the path `TABLE/17.png`, whatever its format; if the recipe names the column,
`TABLE/COLUMN/17.png`. Parquet files are read one row group at a time, Arrow files are
memory-mapped.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from train.common import DataError
from train.config import ColumnsConfig
from train.data.containers.columns import choice, chosen_image, chosen_text
from train.data.containers.members import Container

KEPT_BYTES = 2**28
"""Size of the cache of row groups; it always keeps one."""
MOST_BYTES = 2**32
"""Maximum size of the images in a row group."""
LARGE_BYTES = 2**27
"""Larger row groups cause a warning: each example reads a whole one."""

_groups: OrderedDict[tuple[Any, ...], pa.ChunkedArray] = OrderedDict()
_lock = threading.Lock()


class Table(Container):
    """A table whose rows hold images."""

    schema: pa.Schema
    rows: int

    def has(self, member: str) -> bool:
        column, row = self._place(member)
        return row is not None and (column is None or column in self.schema.names)

    def read(self, member: str) -> bytes:
        column, row = self._place(member)
        if row is None:
            raise self.missing(member)
        image = chosen_image(self.schema, ColumnsConfig(image=column), self.path)
        data = self.value(image, row)
        if isinstance(data, dict):
            data = data.get("bytes")
        if not isinstance(data, bytes):
            raise DataError(f"{self.path}: row {row} has no picture in column {image!r}")
        return data

    def _place(self, member: str) -> tuple[str | None, int | None]:
        """Return the column and row in a member's name."""
        column, _, name = member.rpartition("/")
        number = name.removesuffix(".png")
        row = int(number) if number.isascii() and number.isdecimal() else self.rows
        return column or None, row if row < self.rows else None

    def pictures(self, columns: ColumnsConfig) -> list[Path]:
        """Return the path of each row's image: within the table, or of the file that the row names.

        Raises:
            DataError: there is no such column, or a row has neither an image nor a path.
        """
        image = chosen_image(self.schema, columns, self.path)
        home = self.path if columns.image is None else self.path / columns.image
        found = [home / f"{row}.png" for row in range(self.rows)]
        for row, name in self.without_bytes(image):
            file = self.path.parent / name if name else None
            if file is None or not file.is_file():
                what = f"names the file {name!r}, which is not there" if name else "is empty"
                raise DataError(
                    f"{self.path}: column {image!r}: row {row} {what}; write the table again with "
                    "the bytes of all pictures in it"
                )
            found[row] = file
        return found

    def captions(self, columns: ColumnsConfig) -> list[tuple[str, ...]]:
        """Return the captions of each row; nothing if there is no text column.

        Raises:
            DataError: the column is ambiguous.
        """
        text = chosen_text(self.schema, columns, self.path)
        if text is None:
            return [()] * self.rows
        return [_texts(value) for value in self.column(text)]

    def notes(self, columns: ColumnsConfig) -> list[str]:
        """Return notes about how the table is read."""
        note = choice(self.schema, columns, self.path)
        return [] if note is None else [note]

    @abstractmethod
    def column(self, name: str) -> Iterator[Any]:
        """Yield the values of all rows."""

    @abstractmethod
    def value(self, name: str, row: int) -> Any:
        """Return an image as stored: bytes, or {"bytes": …}; None if there is none."""

    @abstractmethod
    def without_bytes(self, name: str) -> Iterator[tuple[int, str | None]]:
        """Yield the rows without image bytes, and the path that they name instead."""


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    return tuple(one for one in (" ".join(text.split()) for text in texts if text) if one)


def _lacking(values: pa.ChunkedArray | pa.Array, first: int) -> Iterator[tuple[int, str | None]]:
    """Yield the rows of a column without bytes, from row number `first` on."""
    if not pa.types.is_struct(values.type):
        missing = values.is_null().to_pylist()
        yield from ((first + row, None) for row, is_null in enumerate(missing) if is_null)
        return
    for row, value in enumerate(values):
        own = None if not value.is_valid else value
        if own is None or not own["bytes"].is_valid:
            has_path = own is not None and "path" in [one.name for one in values.type]
            yield first + row, own["path"].as_py() if own is not None and has_path else None


class Parquet(Table):
    """A parquet file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._metadata = pq.read_metadata(self.footer)
            self.schema = self._metadata.schema.to_arrow_schema()
        except (pa.ArrowException, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read as parquet: {error}; download or write it again"
            ) from None
        self.rows = self._metadata.num_rows
        groups = range(self._metadata.num_row_groups)
        counts = (self._metadata.row_group(group).num_rows for group in groups)
        self._starts = [0, *accumulate(counts)]

    @property
    def footer(self) -> Path:
        """Return the file whose footer describes the table."""
        return self.path

    @property
    def state(self) -> tuple[int, int]:
        """Return a value that changes with the file."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def column(self, name: str) -> Iterator[Any]:
        for group in range(self._metadata.num_row_groups):
            yield from self._read(group, name).to_pylist()

    def value(self, name: str, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        is_struct = pa.types.is_struct(self.schema.field(name).type)
        column = self._kept(group, f"{name}.bytes" if is_struct else name)
        return column[row - self._starts[group]].as_py()

    def without_bytes(self, name: str) -> Iterator[tuple[int, str | None]]:
        is_struct = pa.types.is_struct(self.schema.field(name).type)
        leaf = f"{name}.bytes" if is_struct else name
        for group in range(self._metadata.num_row_groups):
            metadata = self._leaf(group, leaf)
            if metadata.statistics is not None and metadata.statistics.null_count == 0:
                continue
            yield from _lacking(self._read(group, name), self._starts[group])

    def notes(self, columns: ColumnsConfig) -> list[str]:
        notes = super().notes(columns)
        if (largest := self.largest_group(columns)) > LARGE_BYTES:
            notes.append(
                f"{self.path}: its row groups have up to {largest / 2**20:.0f} MiB of pictures, "
                "and an example reads a whole one: slow, unless data.cache keeps latents; write it "
                "again with row_group_size=100, or as tars"
            )
        return notes

    def largest_group(self, columns: ColumnsConfig) -> int:
        """Return the bytes of the images in the largest row group."""
        image = chosen_image(self.schema, columns, self.path)
        is_struct = pa.types.is_struct(self.schema.field(image).type)
        leaf = f"{image}.bytes" if is_struct else image
        groups = range(self._metadata.num_row_groups)
        return max((self._leaf(one, leaf).total_uncompressed_size for one in groups), default=0)

    def _leaf(self, group: int, name: str) -> Any:
        """Return the footer's metadata of a column in a group."""
        metadata = self._metadata.row_group(group)
        columns = (metadata.column(number) for number in range(metadata.num_columns))
        return next(one for one in columns if one.path_in_schema == name)

    def _read(self, group: int, name: str) -> pa.ChunkedArray:
        """Return a column of a group, or with `COLUMN.bytes` that part of it."""
        try:
            file = pq.ParquetFile(self.path, metadata=self._metadata, pre_buffer=False)
            with file:
                return file.read_row_group(group, columns=[name], use_threads=False).column(0)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DataError(
                f"{self.path}: row group {group} is damaged ({error}); download or write it again"
            ) from None

    def _kept(self, group: int, name: str) -> pa.ChunkedArray:
        """Read as `_read`, with a cache."""
        if (size := self._leaf(group, name).total_uncompressed_size) > MOST_BYTES:
            raise DataError(
                f"{self.path}: row group {group} holds {size / 2**30:.1f} GiB of pictures, which "
                "are read together; write it again with row_group_size=100"
            )
        key = str(self.path), *self.state, group, name
        with _lock:
            if key not in _groups:
                _groups[key] = self._read(group, name)
            _groups.move_to_end(key)
            column = _groups[key]
            while len(_groups) > 1 and sum(one.nbytes for one in _groups.values()) > KEPT_BYTES:
                _groups.popitem(last=False)
        return column


class Arrow(Table):
    """An Arrow file: a stream, as `datasets` writes them, or a file with an index."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.schema = self._table.schema
        except (pa.ArrowException, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read as Arrow: {error}; download or save it again"
            ) from None
        self.rows = self._table.num_rows

    @cached_property
    def _table(self) -> pa.Table:
        """Return a table of views into the memory-mapped file."""
        mapped = pa.memory_map(str(self.path))
        if mapped.read(6) == b"ARROW1":
            return pa.ipc.open_file(mapped).read_all()
        mapped.seek(0)
        return pa.ipc.open_stream(mapped).read_all()

    def column(self, name: str) -> Iterator[Any]:
        yield from self._table.column(name).to_pylist()

    def value(self, name: str, row: int) -> Any:
        return self._table.column(name)[row].as_py()

    def without_bytes(self, name: str) -> Iterator[tuple[int, str | None]]:
        first = 0
        for chunk in self._table.column(name).chunks:
            own = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
            if chunk.null_count or own.null_count:
                yield from _lacking(chunk, first)
            first += len(chunk)
