"""Captions in files that describe all pictures of a folder: metadata.jsonl, .csv and .parquet."""

import csv
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference.recipe import RecipeWarning
from train.common import DataError
from train.config import ContainerConfig
from train.data.containers import (
    METADATA_FILES,
    TABLES,
    files_within,
    open_file,
    open_table,
    read_text,
    walk,
)
from train.data.sources.listing import containers_at


def read_metadata(
    folder: Path | str, source: ContainerConfig | None = None
) -> dict[Path, tuple[str, ...]]:
    """Captions by picture from every metadata file of a folder, and from what containers tell.

    A row has `file_name`, a path beside the file, and `text`, a caption or a list of captions.

    Args:
        folder: as `data.path`.
        source: what is taken out of containers, and which column captions are in; without it
            containers are left alone.

    Raises:
        DataError: a file cannot be read, or lacks one of the two.
    """
    captions: dict[Path, tuple[str, ...]] = {}
    root = Path(folder)
    files = [path for path in walk(root) if path.name in METADATA_FILES] if root.is_dir() else []
    for container in containers_at(str(folder), "data.path", source) if source else ():
        if container.suffix.lower() in TABLES:
            table = open_table(container)
            columns = (source or ContainerConfig()).columns
            told = zip(table.pictures(columns), table.captions(columns), strict=True)
            captions |= {path: texts for path, texts in told if texts}
        else:
            files += [path for path in files_within(container) if path.name in METADATA_FILES]
    column = source.columns.text if source else None
    for file in files:
        if file.suffix != ".jsonl" and column is None and not tells_captions(file):
            continue
        for where, row in _rows(file):
            name, texts = _told(row, column, f"{file}: {where}")
            captions[file.parent / name] = texts
    return captions


def tells_captions(file: Path) -> bool:
    """Whether a table beside pictures has captions; many tell other things, which is said."""
    _, row = next(_rows(file), ("", {}))
    if not row or {"file_name", "text"} <= row.keys():
        return True
    message = (
        f"{file}: tells no captions: its columns are {', '.join(map(str, row))}, where "
        "file_name and text are needed (data.columns.text names another than text)"
    )
    warnings.warn(message, RecipeWarning, stacklevel=3)
    return False


def _told(row: Any, column: str | None, where: str) -> tuple[str, tuple[str, ...]]:
    """The picture and the captions of a row."""
    try:
        name, text = row["file_name"], row[column or "text"]
    except (KeyError, TypeError):
        other = "" if column else " (data.columns.text names another column)"
        raise DataError(f"{where}: expected file_name and {column or 'text'}{other}") from None
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise DataError(f"{where}: text must be a caption or a list of them")
    return str(name), tuple(texts)


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, and where each stands.

    Raises:
        DataError: it is not what its name says.
    """
    if file.suffix == ".parquet":
        yield from _rows_of_parquet(file)
    elif file.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(read_text(file)), strict=True)
        try:
            for row in rows:
                yield f"line {rows.line_num}", row
        except csv.Error as error:
            raise DataError(f"{file}: line {rows.line_num}: not CSV: {error}") from error
    else:
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{file}: line {number}: not JSON: {error}") from error


def _rows_of_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(file) as opened:
            rows = pq.read_table(opened, use_threads=False).to_pylist()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read as parquet: {error}; write it again") from None
    for number, row in enumerate(rows):
        yield f"row {number}", row
