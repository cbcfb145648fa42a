"""Atomic writes: a file is complete or does not exist."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from inference.runtime import naming

FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
"""Errors by which a disk reports that it lost data, not that it lacks an operation."""


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name in the same folder, flush to disk, and rename.

    Args:
        target: the file's final path; its folder is created.
        write: writes the file at the path that it receives.

    Raises:
        OSError: it cannot be written; the error names `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming(target, unfinished):
            write(unfinished)
            sync(unfinished)
            unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's or folder's content to disk, so that it survives a power cut.

    Some disks cannot flush folders (FUSE, shared folders, Windows): there, only files are flushed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in FAILURES or not path.is_dir():
            raise


def remove_left_overs(folder: Path) -> None:
    """Remove files with temporary names, which an interrupted run left in a folder."""
    for left_over in folder.glob(".*"):
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()
