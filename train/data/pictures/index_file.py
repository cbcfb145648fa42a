"""The index of a folder or container of pictures: one file, replaced as a whole.

A line of JSON, an array of `RECORD`, then the names. The line tells a hash of all that follows: a
file that is damaged, or cut off, is told, left out of account and made anew. It lies in the folder
(`.limner-index`) or beside the container; where nothing can be written there, in the user's cache
folder (`$XDG_CACHE_HOME/limner/index`, else `~/.cache/limner/index`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from inference.files import cache_file, write_atomically
from train.common import tell_once
from train.data.streaming import is_shard

NAME = ".limner-index"
FORMAT = 1
RECORD = np.dtype(
    [
        ("size", "<i8"),  # bytes
        ("mtime", "<i8"),  # ns
        ("ctime", "<i8"),  # ns; of members that of their container
        ("known", "<u2"),  # which of the following, see `index.Known`
        ("notes", "<u2"),  # bits, in the order of `pictures.NOTES`
        ("width", "<u4"),  # pixels of the upright picture
        ("height", "<u4"),
        ("digest", "u1", (20,)),  # of the bytes
        ("likeness", "<u8", (2,)),  # perceptual hash
    ]
)
STATE = ["size", "mtime", "ctime"]
SETTLED = 2 * 10**9
"""ns: what has changed so lately may change again within one tick of the clock of its disk."""


_roots: dict[Path, None] = {}


def add_root(root: Path) -> None:
    """Says that pictures below this folder, or in this container, share an index."""
    _roots[root] = None


def root_of(path: Path) -> Path:
    """The innermost root that a picture lies below; without one its folder."""
    return next((parent for parent in path.parents if parent in _roots), path.parent)


class IndexFile:
    """What is kept about the pictures below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def places(self) -> list[Path]:
        """Where the file may lie, the best first."""
        root = self.root
        beside = root / NAME if root.is_dir() else root.with_name(f".{root.name}{NAME}")
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=12).hexdigest()
        try:
            return [beside, cache_file().parent / "index" / name]
        except RuntimeError:  # there is no home folder
            return [beside]

    @property
    def home(self) -> Path:
        """What one process at a time has for itself: the root, or the folder of a streamed one."""
        return self.root.parent if is_shard(self.root) else self.root

    def read(self) -> tuple[list[bytes], np.ndarray]:
        """Names and records; nothing where there is no file, or none that can be used."""
        for place in self.places:
            try:
                return _parsed(place.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                told = error.strerror if isinstance(error, OSError) else error
                tell_once(f"{place}: this index of pictures is damaged ({told}) and made anew")
        return [], np.zeros(0, RECORD)

    def write(self, names: Sequence[bytes], records: np.ndarray) -> None:
        """Replaces the file, or does without where nothing can be written (told once).

        What has changed in the last two seconds is left out: another change of the same tick of
        the clock could not be seen.
        """
        settled = np.maximum(records["mtime"], records["ctime"]) < time.time_ns() - SETTLED
        names = [name for name, stays in zip(names, settled, strict=True) if stays]
        content = _packed(names, records[settled])
        faults = []
        if not (names or any(place.exists() for place in self.places)):
            return
        for place in self.places:
            try:
                write_atomically(place, lambda new: new.write_bytes(content))
            except OSError as error:
                faults.append(f"{place}: {error.strerror}")
                continue
            return
        tell_once(f"no index of pictures is kept, so they are opened at each start: {faults}")

    @contextmanager
    def alone(self, wait: Callable[[], object]) -> Iterator[None]:
        """One process at a time, where the disk can lock; `wait` is called if it is another's turn.

        Nothing is left behind by a process that is killed.
        """
        try:
            import fcntl
        except ImportError:  # Windows: at worst pictures are looked at twice
            yield
            return
        try:
            descriptor = os.open(self.home, os.O_RDONLY)
        except OSError:  # told by who reads the pictures
            yield
            return
        try:
            with suppress(OSError):  # a disk without locks: at worst pictures are looked at twice
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    wait()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _packed(names: Sequence[bytes], records: np.ndarray) -> bytes:
    body = records.tobytes() + b"\0".join(names)
    head = {"limner index": FORMAT, "pictures": len(names), "digest": _digest(body)}
    return json.dumps(head).encode() + b"\n" + body


def _parsed(content: bytes) -> tuple[list[bytes], np.ndarray]:
    line, _, body = content.partition(b"\n")
    head = json.loads(line)
    if head["limner index"] != FORMAT:
        raise ValueError("of another version")
    if head["digest"] != _digest(body):
        raise ValueError("its content is not what was written")
    count = head["pictures"]
    records = np.frombuffer(body, RECORD, count)
    names = body[records.nbytes :].split(b"\0") if count else []
    return names, records


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
