"""On-disk cache of the hashes of large files, so that a model is not hashed again at every start.

The file is `limner/hashes.json` in the user's cache folder (`$XDG_CACHE_HOME`, otherwise
`~/.cache`). A hash is valid while its file keeps its size and modification time. Several processes
may use the cache at once: the file is replaced as a whole, so at worst a hash is computed again. An
unreadable cache is rebuilt, an unwritable one is not used; either causes one warning.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from inference.files.atomic import write_atomically

SMALLEST = 1 << 20
"""Minimum size in bytes of a file in the cache; smaller ones are hashed faster than it is read."""

FORMAT = 1

_lock = threading.Lock()


def cache_file() -> Path:
    """Return the path of the cache."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache"
    return base / "limner" / "hashes.json"


def remembered(path: Path, kind: str, take: Callable[[Path], str]) -> str:
    """Return the hash of a file, from the cache or by `take`.

    Args:
        path: the file.
        kind: name of the hash, for example `sha256`.
        take: computes the hash.
    """
    path = path.resolve()
    status = path.stat()
    if status.st_size < SMALLEST:
        return take(path)
    try:
        file = cache_file()
    except RuntimeError:  # there is no home folder
        warn_once("there is no folder for a cache of hashes; set XDG_CACHE_HOME")
        return take(path)
    key = f"{kind} {path}"
    state = [status.st_size, status.st_mtime_ns]
    entry = read_cache(file).get(key)
    if isinstance(entry, list) and entry[:2] == state and len(entry) == 3:
        return str(entry[2])
    hash_ = take(path)
    with _lock:
        write_cache(file, read_cache(file) | {key: [*state, hash_]})
    return hash_


def read_cache(file: Path) -> dict[str, Any]:
    """Return the cached hashes; an empty dict if the file does not exist or is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return dict(content["hashes"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warn_once(f"{file}: the cache of hashes cannot be read ({error}) and is rebuilt")
        return {}


def write_cache(file: Path, hashes: dict[str, Any]) -> None:
    """Replace the cache file."""
    text = json.dumps({"format": FORMAT, "hashes": hashes}, indent=0, ensure_ascii=True)
    try:
        write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        warn_once(f"{file}: the cache of hashes cannot be written ({error.strerror})")


@cache
def warn_once(message: str) -> None:
    """Emit a warning the first time that it is given."""
    warnings.warn(message, stacklevel=3)
