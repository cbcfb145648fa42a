"""The one door to the bytes of pictures and captions, wherever they lie.

A picture in a container has the path `CONTAINER/MEMBER`, such as `shards/00.tar/000123.jpg`. Every
reader of a picture's bytes, size or time asks here, and need not know the difference. Nothing is
kept open: any process may ask for any path at any time.
"""

import os
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from pathlib import Path

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
    """All bytes of a file.

    Raises:
        OSError: it cannot be read.
        DataError: it is not in its container, or damaged there.
    """
    if (place := split_path(path)) is None:
        return path.read_bytes()
    container, member = place
    return open_container(container).read(member)


def open_file(path: Path) -> BufferedReader | BytesIO:
    """A file's bytes, to be read from the start and at any place; to be closed.

    Raises:
        OSError, DataError: as `read_bytes`.
    """
    return path.open("rb") if split_path(path) is None else BytesIO(read_bytes(path))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is in another encoding.
        OSError, DataError: as `read_bytes`.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}; save it in this encoding") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def file_status(path: Path) -> os.stat_result:
    """What the file system says of a file; of a member, what it says of the container.

    Raises:
        OSError: there is no such file.
    """
    place = split_path(path)
    return container_status(path if place is None else place[0])


def file_state(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns): who meets the same again need not look again.

    Of a member these are its container's.

    Raises:
        OSError: there is no such file.
    """
    state = file_status(path)
    return state.st_size, state.st_mtime_ns


def exists(path: Path) -> bool:
    """Whether there is a file with this path.

    Raises:
        DataError: its container is damaged.
    """
    if (place := split_path(path)) is None:
        return path.is_file()
    container, member = place
    return open_container(container).has(member)


def name_within(path: Path, root: Path) -> str:
    """A picture's name in a dataset that may lie elsewhere tomorrow, as far as that can be told."""
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    place = split_path(path)
    return path.as_posix() if place is None else f"{place[0].name}/{place[1]}"


def container_of(path: Path) -> Path | None:
    """The container that a path is or leads into; None where it is a plain file or folder."""
    if is_container(path):
        return path
    return None if (place := split_path(path)) is None else place[0]


def files_within(folder: Path) -> Iterator[Path]:
    """The files in an archive, or in a folder of one and those within it; in the order of paths.

    The rows of a table are no files.

    Raises:
        DataError: the archive is damaged.
    """
    container, name = (folder, "") if is_container(folder) else split_path(folder) or (folder, "")
    if container.suffix.lower() in TABLES:
        return
    for member in open_archive(container).names(name):
        yield container / member


def walk(root: Path) -> Iterator[Path]:
    """Everything in a folder and in those within it but the folders themselves, sorted by path.

    Each folder is read once and no file is looked at. Links to folders are not followed.
    """
    try:
        with os.scandir(root) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except PermissionError:
        return
    for name, is_folder in found:
        path = root / name
        if is_folder:
            yield from walk(path)
        else:
            yield path
