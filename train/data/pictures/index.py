"""Metadata of image files: sizes in pixels, digests and perceptual hashes, kept in an index.

No image is opened twice for them. An entry is valid as long as its file has the same size,
modification time and status change time (ctime, which programs cannot set). All that is wanted of
an image is read in one pass over its bytes, in several threads; of several processes one reads, the
others wait and use what it has found.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntFlag
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from inference.media import sequence_files
from inference.runtime import is_system_fault
from train.common import DataError, FetchError, tell_once
from train.data.containers import file_state as member_state
from train.data.containers import file_status, open_file, read_bytes
from train.data.pictures.index_file import RECORD, STATE, IndexFile, root_of
from train.data.pictures.reading import (
    NOTES,
    Header,
    decoded,
    header_of,
    is_plain,
    opened,
    quiet,
    shown,
)
from train.data.streaming import find_shard


class Found(NamedTuple):
    """The requested metadata of an image."""

    header: Header | None
    digest: bytes | None
    """20 bytes."""
    likeness: tuple[int, int] | None
    """See `perceptual_hash`."""


def look(path: Path, header: bool, digest: bool, likeness: bool, sound: bool) -> Found:
    """Read a file, or the images of a folder that is a clip, once.

    Only with `digest` the whole file is read; only with `likeness` or `sound` it is decoded, with
    `sound` to the last pixel. The caller handles Pillow's warnings.

    Raises:
        DataError: it is not a readable image.
        OSError: it cannot be opened.
    """
    if not (header or likeness or sound):
        return Found(None, digest_of(path), None)
    content = digested = None
    if digest and is_plain(path):  # opening reports anything else
        data = read_bytes(path)
        content, digested = BytesIO(data), _joined([hashlib.blake2b(data).digest()])
    with opened(path, content) as image:
        head = header_of(image)
        if not (likeness or sound):
            return Found(head, digested, None)
        if not sound:
            image.draft(None, (72, 72))
        whole = decoded(image)
        return Found(head, digested, perceptual_hash(whole) if likeness else None)


def digest_of(path: Path) -> bytes:
    """Return the hash of a file's bytes, or of a folder's images; 20 bytes."""
    digests = []
    for one in sequence_files(path) if path.is_dir() else [path]:
        with open_file(one) as file:
            digests.append(hashlib.file_digest(file, "blake2b").digest())
    return _joined(digests)


def _joined(digests: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(digests), digest_size=20).digest()


def perceptual_hash(image: Image.Image) -> tuple[int, int]:
    """Return two hashes of 64 bits: which horizontal, and which vertical, neighbours are brighter.

    This is dHash. Of near-duplicates (scaled, compressed again, slightly changed in colour) few
    bits differ. After N. Krawetz, "Kind of Like That" (2013). Transparency is put on white.
    """
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    return _bits(across[:, 1:] > across[:, :-1]), _bits(down[1:] > down[:-1])


def _bits(values: np.ndarray) -> int:
    return int.from_bytes(np.packbits(values.reshape(-1)).tobytes(), "big")


READERS = 8
"""Threads that read files; they mostly wait for the disk."""
AT_ONCE = 512
"""Images between two checks of the time."""
SAVE_EVERY = 30.0
"""Seconds after which new entries are saved, so that an interrupted scan loses little."""


class Known(IntFlag):
    """Flags of what an entry contains."""

    SIZE = 1
    DIGEST = 2
    LIKENESS = 4
    SOUND = 8
    """Every pixel can be decoded."""


class Facts(NamedTuple):
    """Metadata of images, in the order of the request."""

    records: np.ndarray
    """(n,) of `RECORD`."""
    faults: dict[int, DataError]
    """Errors of unreadable images, about which nothing else is known."""

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of the upright image in pixels."""
        record = self.records[index]
        return int(record["width"]), int(record["height"])

    def header(self, index: int) -> Header:
        """Return the size of the upright image, with its notes."""
        bits = int(self.records[index]["notes"])
        notes = (note for place, note in enumerate(NOTES) if bits >> place & 1)
        return Header(*self.size(index), tuple(notes))

    def digest(self, index: int) -> str:
        """Return the hash of the bytes, 40 hexadecimal digits."""
        return self.records["digest"][index].tobytes().hex()

    def check(self) -> Facts:
        """Return itself if all images are readable.

        Raises:
            DataError: images cannot be read; all are counted, the first ten listed.
        """
        if self.faults:
            lines = [str(fault) for fault in self.faults.values()]
            more = [f"… and {len(lines) - 10} more files"] if len(lines) > 10 else []
            raise DataError("\n".join(lines[:10] + more))
        return self


def picture_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright image in pixels.

    Raises:
        DataError: it cannot be read.
    """
    return picture_facts([path], Known.SIZE).check().size(0)


def picture_digest(path: Path) -> str:
    """Return the hash of a file's bytes, or of the images of a folder; 40 hexadecimal digits.

    Raises:
        DataError: it cannot be read.
    """
    return picture_facts([path], Known.DIGEST).check().digest(0)


def picture_facts(
    paths: Sequence[Path], wanted: Known, seen: Callable[[], object] | None = None
) -> Facts:
    """Return metadata of images: from the index if present, else by reading them.

    `seen` is called after each image that was read.
    """
    records, faults = np.zeros(len(paths), RECORD), {}
    groups: dict[Path, list[int]] = {}
    roots: dict[Path, Path] = {}
    for number, path in enumerate(paths):
        folder = path.parent
        if (root := roots.get(folder)) is None:
            root = roots[folder] = root_of(path)
        groups.setdefault(root, []).append(number)
    for root, numbers in groups.items():
        own = [paths[number] for number in numbers] if len(groups) > 1 else paths
        found, wrong = _Search(root, own, wanted, seen).facts()
        records[numbers] = found
        faults |= {numbers[number]: error for number, error in wrong.items()}
    return Facts(records, dict(sorted(faults.items())))


class _Search:
    """Metadata of the images below one root."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        wanted: Known,
        seen: Callable[[], object] | None = None,
    ) -> None:
        self.file = IndexFile(root)
        self.seen = seen or (lambda: None)
        self.paths = paths
        self.wanted = int(wanted)
        start = len(os.fspath(root)) + 1 if root != Path() else 0
        self.names = [os.fsencode(path)[start:] for path in paths]
        self.records = np.zeros(len(paths), RECORD)
        self.faults: dict[int, DataError] = {}

    def facts(self) -> tuple[np.ndarray, dict[int, DataError]]:
        """Return records, and the errors of images without one."""
        for number, path in enumerate(self.paths):
            try:
                self.records[number]["size"], *times = file_state(path)
            except OSError as error:
                self.faults[number] = DataError(f"{shown(path)}: cannot be read: {error.strerror}")
                continue
            self.records[number]["mtime"], self.records[number]["ctime"] = times
        self._take_known()
        if len(self._missing()):
            message = f"{self.file.home}: another process indexes its pictures; waiting for it"
            with self.file.alone(lambda: tell_once(message)):
                self._take_known()
                self._look(self._missing())
        return self.records, self.faults

    def _missing(self) -> np.ndarray:
        lacks = (self.records["known"] & self.wanted) != self.wanted
        lacks[list(self.faults)] = False
        return np.flatnonzero(lacks)

    def _take_known(self) -> None:
        """Use the entries of the index for unchanged files."""
        names, kept = self.file.read()
        if not names:
            return
        rows = dict(zip(names, range(len(names)), strict=True))
        found = np.array([rows.get(name, -1) for name in self.names])
        same = found >= 0
        for column in STATE:
            same &= kept[column][found] == self.records[column]
        self.records[same] = kept[found[same]]

    def _look(self, numbers: np.ndarray) -> None:
        if not len(numbers):
            return
        saved = time.monotonic()
        with quiet(), ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(numbers), AT_ONCE):
                for number, found in pool.map(self._seen, numbers[start : start + AT_ONCE]):
                    self._enter(number, found)
                    self.seen()
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        self._save()

    def _seen(self, number: int) -> tuple[int, Found | DataError]:
        path, record = self.paths[number], self.records[number]
        lacks = self.wanted & ~int(record["known"])
        try:
            found = look(
                path,
                header=bool(lacks & Known.SIZE),
                digest=bool(lacks & Known.DIGEST),
                likeness=bool(lacks & Known.LIKENESS),
                sound=bool(lacks & Known.SOUND),
            )
            if file_state(path) != tuple(record[STATE]):
                raise DataError(f"{shown(path)}: changed while it was read; start again")
        except FetchError:  # nothing is known about the image
            raise
        except DataError as error:
            return number, error
        except OSError as error:
            if is_system_fault(error):
                raise
            return number, DataError(f"{shown(path)}: cannot be read: {error.strerror or error}")
        return number, found

    def _enter(self, number: int, found: Found | DataError) -> None:
        if isinstance(found, DataError):
            self.faults[number] = found
            return
        record = self.records[number]
        if found.header is not None:
            record["width"], record["height"] = found.header[:2]
            bits = (1 << list(NOTES).index(note) for note in found.header.notes)
            record["notes"] = sum(bits)
            record["known"] |= Known.SIZE | (self.wanted & Known.SOUND)
        if found.digest is not None:
            record["digest"] = np.frombuffer(found.digest, np.uint8)
            record["known"] |= Known.DIGEST
        if found.likeness is not None:
            record["likeness"] = found.likeness
            record["known"] |= Known.LIKENESS

    def _save(self) -> None:
        """Write all entries, with those that others have found for other existing files."""
        names, kept = self.file.read()
        own = {*self.names}
        others = [row for row, name in enumerate(names) if name not in own and self._is_there(name)]
        known = np.flatnonzero(self.records["known"])
        self.file.write(
            [*(self.names[number] for number in known), *(names[row] for row in others)],
            np.concatenate([self.records[known], kept[others]]),
        )

    def _is_there(self, name: bytes) -> bool:
        try:
            file_state(self.file.root / os.fsdecode(name))
        except OSError:
            return False
        return True


def file_state(path: Path) -> tuple[int, int, int]:
    """Return (bytes, mtime, ctime), times in ns, of a file or of all images of a clip folder.

    Raises:
        OSError: there is no such file.
    """
    try:
        state = file_status(path) if find_shard(path) else path.stat()
    except NotADirectoryError:  # in a container, which changes as a whole
        container = next(parent for parent in path.parents if parent.is_file())
        return *member_state(path), container.stat().st_ctime_ns
    if not stat.S_ISDIR(state.st_mode):
        return state.st_size, state.st_mtime_ns, state.st_ctime_ns
    parts = [file.stat() for file in sequence_files(path)]
    mtime = max(part.st_mtime_ns for part in [state, *parts])
    ctime = max(part.st_ctime_ns for part in [state, *parts])
    return sum(part.st_size for part in parts), mtime, ctime
