"""Paths that users name, before anything is read from them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from inference.runtime.errors import InputError
from inference.runtime.failures import describe_os_error, shorten


def check_readable(path: str | Path, key: str = "") -> None:
    """Raise InputError for a path that cannot be read, with the reason that the system gives.

    Libraries give others: safetensors says of a file without access that there is none. Reading a
    named pipe or a device may never end. A path where nothing is passes: whoever opens it reports
    it.

    Args:
        path: of a file or folder, as the user wrote it.
        key: begins the message, if it is a key's value.
    """
    prefix = f"{key}: " if key else ""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a text may be no path at all)
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
        elif stat.S_ISREG(mode):
            with open(path, "rb"):  # noqa: PTH123
                return
        else:
            raise InputError(
                f"{prefix}{shorten(str(path))}: is a pipe or a device, which is not read; name a "
                "file"
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"{prefix}{describe_os_error(error)}") from error
    except InputError:
        raise
    except ValueError as error:  # it contains U+0000
        raise InputError(f"{prefix}{shorten(str(path))!r} is no path: {error}") from error
