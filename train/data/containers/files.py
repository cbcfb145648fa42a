"""Access to the bytes of images and captions, on the disk and in containers.

An image in a container has the path `CONTAINER/MEMBER`, such as `shards/00.tar/000123.jpg`. All
code that reads an image's bytes, size or time uses this module and need not know the difference.
Nothing is kept open: any process may read any path at any time.
"""

import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from train.common import DataError
from train.data.containers.containers import (
    TABLES,
    container_status,
    is_container,
    open_archive,
    open_container,
    split_path,
)


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a file.

    Raises:
        OSError: it cannot be read.
        DataError: it is missing in its container, or damaged there.
    """
    if (place := split_path(path)) is None:
        return path.read_bytes()
    container, member = place
    return open_container(container).read(member)


def open_file(path: Path) -> BufferedReader | BytesIO:
    """Open a seekable binary stream of a file, which the caller closes.

    Raises:
        OSError, DataError: as `read_bytes`.
    """
    return path.open("rb") if split_path(path) is None else BytesIO(read_bytes(path))


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: it is in another encoding.
        OSError, DataError: as `read_bytes`.
    """
    if split_path(path) is None and not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: is not a file; remove it, or rename it")  # a pipe never ends
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}; save it in this encoding") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parsed_json(text: str, where: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        DataError: it is not JSON, or contains what no text can be (half of a surrogate pair).
    """
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():  # escapes of surrogates
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise DataError(f"{where}: not JSON: nested too deep") from None
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: contains half of a character (\\ud800 … \\udfff without its partner); write "
            "the text again"
        ) from None
    except ValueError as error:  # also of numbers with thousands of digits
        raise DataError(f"{where}: not JSON: {error}") from error
    return content


def file_status(path: Path) -> os.stat_result:
    """Return the status of a file; for a member, that of its container.

    Raises:
        OSError: there is no such file.
    """
    place = split_path(path)
    return container_status(path if place is None else place[0])


def file_state(path: Path) -> tuple[int, int]:
    """Return (bytes, modification time in ns), to detect changes of a file.

    For a member these are its container's.

    Raises:
        OSError: there is no such file.
    """
    state = file_status(path)
    return state.st_size, state.st_mtime_ns


def exists(path: Path) -> bool:
    """Return whether a file with this path exists.

    Raises:
        DataError: its container is damaged.
    """
    if (place := split_path(path)) is None:
        return path.is_file()
    container, member = place
    return open_container(container).has(member)


def name_within(path: Path, root: Path) -> str:
    """Return an image's name relative to its dataset, if possible, since the dataset may move."""
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    place = split_path(path)
    return path.as_posix() if place is None else f"{place[0].name}/{place[1]}"


def container_of(path: Path) -> Path | None:
    """Return the container that a path is or leads into; None for a plain file or folder."""
    if is_container(path):
        return path
    return None if (place := split_path(path)) is None else place[0]


def files_within(folder: Path) -> Iterator[Path]:
    """Yield the files in an archive, or in a folder within one, recursively, in path order.

    Rows of a table are not files.

    Raises:
        DataError: the archive is damaged.
    """
    container, name = (folder, "") if is_container(folder) else split_path(folder) or (folder, "")
    if container.suffix.lower() in TABLES:
        return
    for member in open_archive(container).names(name):
        yield container / member
