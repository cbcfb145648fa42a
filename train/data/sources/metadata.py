"""Captions in files that describe all images of a folder: metadata.jsonl, .csv and .parquet.

Also the two lists of CogVideo's own trainers (`finetune/`): prompts.txt and videos.txt.
"""

import csv
import io
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from inference.recipe import RecipeWarning
from train.common import DataError
from train.config import ContainerConfig
from train.data.containers import (
    METADATA_FILES,
    TABLES,
    exists,
    files_within,
    nfc,
    open_file,
    open_table,
    parsed_json,
    read_text,
    walk,
    windows_parts,
)
from train.data.sources.listing import containers_at
from train.data.sources.texts import check_caption, check_within


def read_metadata(
    folder: Path | str, source: ContainerConfig | None = None, key: str = "data.path"
) -> dict[Path, tuple[str, ...]]:
    """Return captions by image from every metadata file of a folder, and from containers.

    A row has `file_name`, a path relative to the file, and `text`, a caption or a list of captions.

    Args:
        folder: as `data.path`.
        source: what to read from containers, and the column of captions; without it
            containers are ignored.
        key: the recipe key of the folder.

    Raises:
        DataError: a file cannot be read, or lacks one of the two.
    """
    captions: dict[Path, tuple[str, ...]] = {}
    root = Path(folder)
    files = [path for path in walk(root) if path.name in METADATA_FILES] if root.is_dir() else []
    for container in containers_at(str(folder), key, source) if source else ():
        if container.suffix.lower() in TABLES:
            table = open_table(container)
            columns = (source or ContainerConfig()).columns
            rows = zip(table.pictures(columns), table.captions(columns), strict=True)
            captions |= {path: texts for path, texts in rows if texts}
        else:
            files += [path for path in files_within(container) if path.name in METADATA_FILES]
    column = source.columns.text if source else None
    for file in files:
        if file.suffix.lower() != ".jsonl" and column is None and not has_captions(file):
            continue
        parent = file.parent
        for where, row in _rows(file):
            name, texts = _parsed(row, column, f"{file}: {where}")
            path = named_by(parent, name)
            check_within(name, path, parent, f"{file}: {where}")
            captions[path] = texts
    return captions


VIDEO_LIST, PROMPT_LISTS = "videos.txt", ("prompts.txt", "prompt.txt")
FRAME_LIST = "images.txt"
"""First frames as files; not read, since a clip has its own."""


def read_lists(root: Path) -> tuple[str, dict[Path, tuple[str, ...]]] | None:
    """Return the clips that a folder's videos.txt lists, with their lines of prompts.txt.

    Line n of one belongs to line n of the other; empty lines do not count, as in CogVideo's
    trainers. Paths are relative to the folder. A clip that is listed twice has both captions.

    Returns:
        Name of the list of captions, and captions by clip; None without the two lists.

    Raises:
        DataError: the lists differ in length, or name a file that does not exist.
    """
    named = next((name for name in PROMPT_LISTS if (root / name).is_file()), None)
    if named is None or not (root / VIDEO_LIST).is_file():
        return None
    videos, prompts = _lines(root / VIDEO_LIST), _lines(root / named)
    if len(videos) != len(prompts):
        raise DataError(
            f"{root / named}: has {len(prompts)} captions, and {VIDEO_LIST} {len(videos)} clips; "
            "expected one line for each, without line breaks within a caption"
        )
    found: dict[Path, tuple[str, ...]] = {}
    for (number, name), (line, text) in zip(videos, prompts, strict=True):
        where = f"{root / VIDEO_LIST}: line {number}"
        path = named_by(root, name)
        check_within(name, path, root, where)
        if not exists(path):
            raise DataError(f"{where}: there is no file {name!r} in {str(root)!r}")
        check_caption(text, f"{root / named}: line {line}")
        found[path] = (*found.get(path, ()), text)
    if (root / FRAME_LIST).is_file():
        message = f"{root / FRAME_LIST}: is not read; the clips' own first frames are taken"
        warnings.warn(message, RecipeWarning, stacklevel=3)
    return named, found


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return the lines with text, each with its number."""
    lines = enumerate(read_text(file).split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def named_by(folder: Path, name: str) -> Path:
    """Return the file that a table names, relative to a folder.

    A path that Windows wrote is read as such unless a file has exactly this name. Of one with a
    drive the longest end that exists in the folder is meant: the data have moved.
    """
    path = folder / name
    if (parts := windows_parts(name)) is None or exists(path):
        return path
    ends = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((end for end in ends if exists(end)), ends[0] if ends else path)


def matched(
    described: dict[Path, tuple[str, ...]], paths: Collection[Path]
) -> tuple[dict[Path, tuple[str, ...]], list[Path]]:
    """Return the captions under the images' own names, and what has none among `paths`.

    macOS and some disks spell accents in another way than what wrote the table (`nfc`).
    """
    lost = described.keys() - set(paths) if described else ()
    if not lost:
        return described, []
    spelled = {nfc(str(path)): path for path in lost}
    found = {
        path: spelled.pop(name)
        for path in paths
        if path not in described and (name := nfc(str(path))) in spelled
    }
    again = {path: described[other] for path, other in found.items()}
    return described | again, [*spelled.values()]


def has_captions(file: Path) -> bool:
    """Return whether a table beside images has captions; if not, warn."""
    _, row = next(_rows(file), ("", {}))
    if not row or {"file_name", "text"} <= row.keys():
        return True
    message = (
        f"{file}: has no captions: its columns are {', '.join(map(str, row))}, where "
        "file_name and text are needed (data.columns.text names another than text)"
    )
    warnings.warn(message, RecipeWarning, stacklevel=3)
    return False


def _parsed(row: Any, column: str | None, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the image and the captions of a row."""
    try:
        name, text = row["file_name"], row[column or "text"]
    except (KeyError, TypeError):
        other = "" if column else " (data.columns.text names another column)"
        raise DataError(f"{where}: expected file_name and {column or 'text'}{other}") from None
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise DataError(f"{where}: text must be a caption or a list of them")
    for one in (str(name), *texts):
        check_caption(one, where)
    return str(name), tuple(texts)


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file, and the position of each.

    Raises:
        DataError: its content does not fit its extension.
    """
    if file.suffix.lower() == ".parquet":
        yield from _rows_of_parquet(file)
    elif file.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(read_text(file)), strict=True)
        try:
            for row in rows:
                yield f"line {rows.line_num}", row
        except csv.Error as error:
            raise DataError(f"{file}: line {rows.line_num}: not CSV: {error}") from error
    else:
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                yield f"line {number}", parsed_json(line, f"{file}: line {number}")


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
