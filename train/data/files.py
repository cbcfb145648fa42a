"""The one door to the bytes of pictures and captions, wherever they lie.

A picture in a container has the path `CONTAINER/MEMBER`, such as `shards/00.tar/000123.jpg`. Every
reader of a picture's bytes, size or time asks here, and need not know the difference. Nothing is
kept open: any process may ask for any path at any time.
"""

from io import BufferedReader, BytesIO
from pathlib import Path

from train.data.errors import DataError


def read_bytes(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    return path.read_bytes()


def open_file(path: Path) -> BufferedReader | BytesIO:
    """A file's bytes, to be read from the start and at any place; to be closed.

    Raises:
        OSError: it cannot be read.
    """
    return path.open("rb")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is in another encoding.
        OSError: it cannot be read.
    """
    try:
        with open_file(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}; save it in this encoding") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def file_state(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns): who meets the same again need not look again.

    Raises:
        OSError: there is no such file.
    """
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def exists(path: Path) -> bool:
    """Whether there is a file with this path."""
    return path.is_file()
