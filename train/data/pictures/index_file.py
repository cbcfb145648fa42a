"""The index of a folder or container of images: one file, replaced as a whole.

It has a line of JSON, an array of `RECORD`, then the names. The line contains a hash of the rest: a
file that is damaged or truncated is reported, ignored and rebuilt. It is in the folder
(`.limner-index`) or beside the container; if that is not writable, in the user's cache folder
(`$XDG_CACHE_HOME/limner/index`, else `~/.cache/limner/index`).
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
        ("width", "<u4"),  # pixels of the upright image
        ("height", "<u4"),
        ("digest", "u1", (20,)),  # of the bytes
        ("likeness", "<u8", (2,)),  # perceptual hash
    ]
)
STATE = ["size", "mtime", "ctime"]
SETTLED = 2 * 10**9
"""ns: a file that changed so recently may change again within one tick of its disk's clock."""


_roots: dict[Path, None] = {}


def add_root(root: Path) -> None:
    """Declare that images below this folder, or in this container, share an index."""
    _roots[root] = None


def root_of(path: Path) -> Path:
    """Return the innermost root above an image; by default its folder."""
    return next((parent for parent in path.parents if parent in _roots), path.parent)


class IndexFile:
    """The stored metadata of the images below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def places(self) -> list[Path]:
        """Return possible paths of the file, the best first."""
        root = self.root
        beside = root / NAME if root.is_dir() else root.with_name(f".{root.name}{NAME}")
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=12).hexdigest()
        try:
            return [beside, cache_file().parent / "index" / name]
        except RuntimeError:  # there is no home folder
            return [beside]

    @property
    def home(self) -> Path:
        """Return what one process at a time locks: the root, or the folder of a streamed one."""
        return self.root.parent if is_shard(self.root) else self.root

    def read(self) -> tuple[list[bytes], np.ndarray]:
        """Return names and records; nothing if there is no valid file."""
        for place in self.places:
            try:
                return _parsed(place.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                tell_once(f"{place}: this index of images is damaged ({reason}) and is rebuilt")
        return [], np.zeros(0, RECORD)

    def write(self, names: Sequence[bytes], records: np.ndarray) -> None:
        """Replace the file; if nothing can be written, warn once and do without.

        Files that changed in the last two seconds are omitted: another change in the same tick of
        the clock could not be detected.
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
        tell_once(f"no index of images can be written, so they are read at each start: {faults}")

    @contextmanager
    def alone(self, wait: Callable[[], object]) -> Iterator[None]:
        """Admit one process at a time, if the disk supports locks; `wait` is called while waiting.

        A process that is killed leaves nothing behind.
        """
        try:
            import fcntl
        except ImportError:  # Windows: at worst images are read twice
            yield
            return
        try:
            descriptor = os.open(self.home, os.O_RDONLY)
        except OSError:  # reading the images reports it
            yield
            return
        try:
            with suppress(OSError):  # no locks: at worst images are read twice
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
