"""Tables of pictures: parquet files, and the Arrow files that Hugging Face's `datasets` keeps.

A row's picture has the path `TABLE/17.png`, whatever its format; where the recipe names the column,
`TABLE/COLUMN/17.png`. Rows are read a row group at a time from parquet, and from Arrow files where
they lie.
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
"""Of the row groups read last; one is always kept."""
MOST_BYTES = 2**32
"""Of pictures in a row group."""
LARGE_BYTES = 2**27
"""Row groups with more are told: each example reads a whole one."""

_groups: OrderedDict[tuple[Any, ...], pa.ChunkedArray] = OrderedDict()
_lock = threading.Lock()


class Table(Container):
    """A table whose rows hold pictures."""

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
        """The column and row that a member's name says."""
        column, _, name = member.rpartition("/")
        number = name.removesuffix(".png")
        row = int(number) if number.isascii() and number.isdecimal() else self.rows
        return column or None, row if row < self.rows else None

    def pictures(self, columns: ColumnsConfig) -> list[Path]:
        """The path of each row's picture: within the table, or of the file that the row names.

        Raises:
            DataError: there is no such column, or a row has neither a picture nor a file's path.
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
        """What each row says of its picture; nothing where there is no column of texts.

        Raises:
            DataError: it cannot be known which column is meant.
        """
        text = chosen_text(self.schema, columns, self.path)
        if text is None:
            return [()] * self.rows
        return [_texts(value) for value in self.column(text)]

    def notes(self, columns: ColumnsConfig) -> list[str]:
        """What users should know of how it is read."""
        told = choice(self.schema, columns, self.path)
        return [] if told is None else [told]

    @abstractmethod
    def column(self, name: str) -> Iterator[Any]:
        """The values of all rows."""

    @abstractmethod
    def value(self, name: str, row: int) -> Any:
        """A picture as it is written: bytes, or {"bytes": …}; None where there is none."""

    @abstractmethod
    def without_bytes(self, name: str) -> Iterator[tuple[int, str | None]]:
        """The rows without bytes of a picture, and the path that they tell instead."""


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    return tuple(one for one in (" ".join(text.split()) for text in texts if text) if one)


def _lacking(values: pa.ChunkedArray | pa.Array, first: int) -> Iterator[tuple[int, str | None]]:
    """The rows of a column that have no bytes, from row number `first` on."""
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
        """The file whose end tells of all other parts of it."""
        return self.path

    @property
    def state(self) -> tuple[int, int]:
        """What is another if the file has changed."""
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
            told = self._leaf(group, leaf)
            if told.statistics is not None and told.statistics.null_count == 0:
                continue
            yield from _lacking(self._read(group, name), self._starts[group])

    def notes(self, columns: ColumnsConfig) -> list[str]:
        told = super().notes(columns)
        if (largest := self.largest_group(columns)) > LARGE_BYTES:
            told.append(
                f"{self.path}: its row groups have up to {largest / 2**20:.0f} MiB of pictures, "
                "and an example reads a whole one: slow, unless data.cache keeps latents; write it "
                "again with row_group_size=100, or as tars"
            )
        return told

    def largest_group(self, columns: ColumnsConfig) -> int:
        """Bytes of the pictures in the row group that has most of them."""
        image = chosen_image(self.schema, columns, self.path)
        is_struct = pa.types.is_struct(self.schema.field(image).type)
        leaf = f"{image}.bytes" if is_struct else image
        groups = range(self._metadata.num_row_groups)
        return max((self._leaf(one, leaf).total_uncompressed_size for one in groups), default=0)

    def _leaf(self, group: int, name: str) -> Any:
        """What the file's end tells of a column in a group."""
        told = self._metadata.row_group(group)
        columns = (told.column(number) for number in range(told.num_columns))
        return next(one for one in columns if one.path_in_schema == name)

    def _read(self, group: int, name: str) -> pa.ChunkedArray:
        """A column in a group, or with `COLUMN.bytes` that part of it."""
        try:
            file = pq.ParquetFile(self.path, metadata=self._metadata, pre_buffer=False)
            with file:
                return file.read_row_group(group, columns=[name], use_threads=False).column(0)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DataError(
                f"{self.path}: row group {group} is damaged ({error}); download or write it again"
            ) from None

    def _kept(self, group: int, name: str) -> pa.ChunkedArray:
        """As `_read`; the last ones are kept."""
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
    """An Arrow file, a stream as `datasets` writes them, or of the format with an index."""

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
        """Of views into the file, which is mapped into memory."""
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
