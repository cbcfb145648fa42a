"""Paths that users name, before anything is read from them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from inference.runtime.errors import InputError
from inference.runtime.failures import describe_os_error, shorten


def refuse_special(path: str | Path, key: str = "") -> None:
    """Raise InputError for what is neither a file nor a folder, or cannot be asked for.

    Reading a named pipe may never end. A path where nothing is passes: whoever opens it reports it.

    Args:
        path: as the user wrote it.
        key: begins the message, if it is a key's value.
    """
    prefix = f"{key}: " if key else ""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a text may be no path at all)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"{prefix}{describe_os_error(error)}") from error
    except ValueError as error:
        raise InputError(f"{prefix}{shorten(str(path))!r} is no path: {error}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{prefix}{shorten(str(path))}: is a pipe or a device, which is not read; name a file"
        )
