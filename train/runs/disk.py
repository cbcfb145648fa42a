"""Free disk space: checked before a save, and before a run starts."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from train.common import RESERVE, RunDirectoryError


def existing(path: Path) -> Path:
    """Return the path, or the nearest parent folder that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def room(path: Path) -> int:
    """Return the bytes that may be written at a path, which need not exist; at least 0."""
    return max(0, shutil.disk_usage(existing(path)).free - RESERVE)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder; 0 if it does not exist."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def megabytes(size: int) -> str:
    """Format a size: 0.4 MB, 12 MB, 3.1 GB."""
    if size < 10e6:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def check_writable(folders: Iterable[Path]) -> None:
    """Raise RunDirectoryError if one of the folders, existing or not, cannot be written to."""
    folders = list(folders)
    for link in (place for path in folders for place in (path, *path.parents)):
        if link.is_symlink() and not link.exists():
            raise RunDirectoryError(
                f"{link} is a link that leads nowhere; a run saves there. Remove the link or give "
                "another output_dir=…"
            )
    for folder in dict.fromkeys(existing(folder) for folder in folders):
        if not folder.is_dir():
            raise RunDirectoryError(
                f"{folder} is a file; a run needs a folder here: another name=…"
            )
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"\0")
        except OSError as error:
            raise RunDirectoryError(
                f"{folder} cannot be written to ({error.strerror}); a run saves there. Give it "
                "another output_dir=… or the right to write"
            ) from error
