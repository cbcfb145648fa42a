"""What one pass over the bytes of a picture tells."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from inference.video.reading import sequence_files
from train.data.files import open_file, read_bytes
from train.data.pictures import Header, decoded, header_of, is_plain, opened


class Found(NamedTuple):
    """As much as was asked for."""

    header: Header | None
    digest: bytes | None
    """20 bytes."""
    likeness: tuple[int, int] | None
    """See `likeness_of`."""


def look(path: Path, header: bool, digest: bool, likeness: bool, sound: bool) -> Found:
    """Reads a file, or the pictures of a folder that is a clip, once.

    Only with `digest` the whole of it is read; only with `likeness` or `sound` it is decoded, with
    `sound` to the last pixel. What Pillow warns of is the caller's business.

    Raises:
        DataError: it is no picture that can be read.
        OSError: it cannot be opened.
    """
    if not (header or likeness or sound):
        return Found(None, digest_of(path), None)
    content = told = None
    if digest and is_plain(path):  # of what is none, it is told on opening
        data = read_bytes(path)
        content, told = BytesIO(data), _joined([hashlib.blake2b(data).digest()])
    with opened(path, content) as image:
        head = header_of(image)
        if not (likeness or sound):
            return Found(head, told, None)
        if not sound:
            image.draft(None, (72, 72))
        whole = decoded(image)
        return Found(head, told, likeness_of(whole) if likeness else None)


def digest_of(path: Path) -> bytes:
    """The hash of a file's bytes, or of those of a folder's pictures; 20 bytes."""
    digests = []
    for one in sequence_files(path) if path.is_dir() else [path]:
        with open_file(one) as file:
            digests.append(hashlib.file_digest(file, "blake2b").digest())
    return _joined(digests)


def _joined(digests: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(digests), digest_size=20).digest()


def likeness_of(image: Image.Image) -> tuple[int, int]:
    """Two hashes of 64 bits: which neighbours across, and which down, are brighter (dHash).

    Of near-duplicates (scaled, compressed again, slightly changed in colour) few bits differ. After
    N. Krawetz, "Kind of Like That" (2013). Transparency is laid on white.
    """
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    return _bits(across[:, 1:] > across[:, :-1]), _bits(down[1:] > down[:-1])


def _bits(values: np.ndarray) -> int:
    return int.from_bytes(np.packbits(values.reshape(-1)).tobytes(), "big")
