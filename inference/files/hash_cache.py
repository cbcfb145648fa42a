"""Hashes of large files, kept on disk: a model is read through once, and not at every start.

The file is `limner/hashes.json` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`). A
hash counts as long as its file has the size and the time of change that it had. Several processes
may use it at once: it is replaced as a whole, so that at worst a hash is taken again. A cache that
cannot be read is begun anew, one that cannot be written is done without; either is told once.
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
"""Bytes of the files worth keeping; smaller ones are hashed in less time than the cache is read."""

FORMAT = 1

_lock = threading.Lock()


def cache_file() -> Path:
    """Where hashes are kept."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache"
    return base / "limner" / "hashes.json"


def remembered(path: Path, kind: str, take: Callable[[Path], str]) -> str:
    """The hash of a file, from the cache or by `take`.

    Args:
        path: the file.
        kind: how it is taken, for example `sha256`.
        take: takes it.
    """
    path = path.resolve()
    status = path.stat()
    if status.st_size < SMALLEST:
        return take(path)
    try:
        file = cache_file()
    except RuntimeError:  # there is no home folder
        tell_once("there is no folder for a cache of hashes; set XDG_CACHE_HOME")
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
    """What is kept; nothing if the file is not there or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return dict(content["hashes"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        tell_once(f"{file}: the cache of hashes cannot be read ({error}) and is begun anew")
        return {}


def write_cache(file: Path, hashes: dict[str, Any]) -> None:
    """Replaces the file."""
    text = json.dumps({"format": FORMAT, "hashes": hashes}, indent=0, ensure_ascii=True)
    try:
        write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        tell_once(f"{file}: the cache of hashes cannot be written ({error.strerror})")


@cache
def tell_once(message: str) -> None:
    """Warns, the first time that this is told."""
    warnings.warn(message, stacklevel=3)
