"""`last.*`: a link to the newest artifact beside it, or a copy where the disk has no links."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from inference.files import sync


def point(path: Path, target: Path) -> None:
    """Make a path stand for a file or folder beside it, atomically.

    A symbolic link; without those (exFAT, shared folders, Google Drive) a hard link of each file;
    without either a copy.

    Raises:
        OSError: none of these is possible; what the path stood for before is removed.
    """
    if path.is_dir() and not path.is_symlink() and not target.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    unfinished = path.with_name(f".{path.name}")
    error: OSError | None = None
    for make in (_symbolic, _hard, _copy):
        remove(unfinished)
        try:
            make(unfinished, target)
            if path.is_dir() and not path.is_symlink():  # a folder can only replace an empty one
                remove(path)
            unfinished.replace(path)
            return sync(path.parent)
        except OSError as failed:
            error = failed
    remove(unfinished)
    remove(path)
    assert error is not None
    raise error


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _symbolic(path: Path, target: Path) -> None:
    path.symlink_to(target.name)


def _hard(path: Path, target: Path) -> None:
    _each_file(path, target, os.link)


def _copy(path: Path, target: Path) -> None:
    _each_file(path, target, shutil.copyfile)
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        sync(file)


def _each_file(path: Path, target: Path, make: Callable[[Path, Path], object]) -> None:
    """Make a file, or all files of a folder."""
    if target.is_dir():
        shutil.copytree(target, path, copy_function=make)
    else:
        make(target, path)
