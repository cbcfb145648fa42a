"""What one pass over the bytes of a picture tells."""

from __future__ import annotations

import hashlib
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from inference.video.reading import sequence_files
from train.data.errors import DataError
from train.data.files import open_file, read_bytes
from train.data.pictures import READING_ERRORS

SIDEWAYS = (5, 6, 7, 8)
"""EXIF's orientations that exchange width and height."""


class Found(NamedTuple):
    """As much as was asked for."""

    size: tuple[int, int] | None
    """(width, height) of the upright picture in pixels."""
    digest: bytes | None
    """20 bytes."""
    likeness: tuple[int, int] | None
    """See `likeness_of`."""


def look(path: Path, size: bool, digest: bool, likeness: bool) -> Found:
    """Reads a file, or the pictures of a folder that is a clip, once.

    Only with `digest` the whole of it is read; only with `likeness` the picture is decoded.

    Raises:
        DataError: it is no picture that can be read.
        OSError: it cannot be opened.
    """
    if not (size or likeness):
        return Found(None, digest_of(path), None)
    if not digest:
        with open_file(path) as file:
            return _seen(path, file, likeness)
    data = read_bytes(path)
    return _seen(path, BytesIO(data), likeness)._replace(
        digest=_joined([hashlib.blake2b(data).digest()])
    )


def digest_of(path: Path) -> bytes:
    """The hash of a file's bytes, or of those of a folder's pictures; 20 bytes."""
    digests = []
    for one in sequence_files(path) if path.is_dir() else [path]:
        with open_file(one) as file:
            digests.append(hashlib.file_digest(file, "blake2b").digest())
    return _joined(digests)


def _joined(digests: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(digests), digest_size=20).digest()


def _seen(path: Path, file: BufferedReader | BytesIO, likeness: bool) -> Found:
    try:
        with Image.open(file) as image:
            width, height = image.size
            sides = (height, width) if orientation(image) in SIDEWAYS else (width, height)
            return Found(sides, None, likeness_of(image) if likeness else None)
    except READING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as a picture: {error}; mend or remove it"
        ) from None


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 … 8, without decoding more than must be.

    Pillow decodes a whole PNG to see whether EXIF data come after the pixels; here it does so only
    for those that have something there. A TIFF it turns itself, and tells its size after that.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and not _has_chunks_after_pixels(image):
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _has_chunks_after_pixels(image: Image.Image) -> bool:
    file: BinaryIO = image.fp  # type: ignore[assignment]
    place, is_after = file.tell(), False
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            if kind in (b"IDAT", b"fdAT"):
                is_after = True
            elif is_after and kind in (b"eXIf", b"zTXt", b"iTXt", b"tEXt"):
                return True
            elif kind == b"IEND":
                return False
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    finally:
        file.seek(place)
    return False


def likeness_of(image: Image.Image) -> tuple[int, int]:
    """Two hashes of 64 bits: which neighbours across, and which down, are brighter (dHash).

    Of near-duplicates (scaled, compressed again, slightly changed in colour) few bits differ. After
    N. Krawetz, "Kind of Like That" (2013). Transparency is laid on white; the picture is taken as
    it is stored, without its EXIF orientation.
    """
    image.draft("L", (72, 72))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    return _bits(across[:, 1:] > across[:, :-1]), _bits(down[1:] > down[:-1])


def _bits(values: np.ndarray) -> int:
    return int.from_bytes(np.packbits(values.reshape(-1)).tobytes(), "big")
