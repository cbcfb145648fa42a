"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Writes to a temporary name in the same folder, makes it durable, and renames it.

    Args:
        target: the file's final path; its folder is created.
        write: writes the file at the path that it is given.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(unfinished)
        sync(unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes a file's or folder's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_left_overs(folder: Path) -> None:
    """Removes what was being written, under a name with a dot before it, when a run was cut."""
    for left_over in folder.glob(".*"):
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()
