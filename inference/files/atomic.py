"""Atomic writes: a file is complete or does not exist."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inference.files.temporary import unfinished
from inference.runtime import naming

FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
"""Errors by which a disk reports that it lost data, not that it lacks an operation."""


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Write to a hidden name in the same folder, flush to disk, and rename.

    Args:
        target: the file's final path; its folder is created.
        write: writes the file at the path that it receives.

    Raises:
        OSError: it cannot be written; the error names `target`.
    """
    with unfinished(target) as path, naming(target, path):
        write(path)
        sync(path)
        path.replace(target)


def write_once(target: Path, write: Callable[[Path], object]) -> None:
    """Do the same, unless the file exists; of several processes one writes it.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written; the error names `target`.
    """
    with unfinished(target) as path, naming(target, path):
        write(path)
        sync(path)
        name_new(path, target)


def name_new(path: Path, target: Path) -> None:
    """Give a complete file its name, unless there is another file of this name.

    The file gets the name as a second one, which no system does over an existing file. A disk that
    has no such links (exFAT, some shared folders) gets an empty file of the name, which the
    complete one replaces at once: only there a process that is killed between the two leaves it
    empty.

    Raises:
        FileExistsError: there is another file of this name.
    """
    try:
        os.link(path, target)
    except FileExistsError as error:
        raise FileExistsError(error.errno, error.strerror, str(target)) from None
    except OSError:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            path.replace(target)
        except OSError:
            target.unlink()
            raise


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process after the other run the block, as far as the disk supports locks.

    The lock leaves no file behind, and ends with the process. Some shared folders have none.
    """
    descriptor = None
    if os.name == "posix":
        import fcntl

        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


class HeldFile:
    """A locked file, until it is released or this process ends."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        """Let others lock it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def hold_file(path: Path) -> HeldFile | None:
    """Lock a file; return None if another process has. A disk without locks locks nothing."""
    held = HeldFile(os.open(path, os.O_RDONLY))
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(held.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:  # the disk has no locks
            return held
    return held


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
