"""Refuse pipes and devices where a file is expected: reading one may never end."""

from __future__ import annotations

import stat
from pathlib import Path

from inference.runtime import InputError


def check_regular(path: Path) -> None:
    """Check that a path is a regular file or a folder.

    Raises:
        InputError: it does not exist, cannot be looked at, or is a pipe, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file or folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a pipe or device; expected a file")
