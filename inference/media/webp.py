"""Lossless animated WebP, frame for frame.

Pillow's writer (libwebp's `WebPAnimEncoder`) merges equal frames, so that a file has fewer frames
than were written, and a still clip becomes a single image. Here every frame is kept: Pillow encodes
the changed region, and the container is assembled according to "WebP Container Specification"
(developers.google.com/speed/webp/docs/riff_container).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

LARGEST_SIDE = 2**14 - 1
"""Maximum side of a VP8L image in pixels."""
EXIF, ANIMATION = 0x08, 0x02
"""Flags of the VP8X chunk."""
DO_NOT_BLEND = 0x02
"""Flag of an ANMF chunk: its pixels replace those before."""


def animated_webp(frames: np.ndarray, fps: float, exif: bytes = b"") -> bytes:
    """Return the bytes of a file, which loops; the same frames give the same bytes.

    Args:
        frames: (f, h, w, 3), uint8; sides of at most `LARGEST_SIDE`.
        fps: frames per second; frame times are rounded to 1/1000 s without drift.
        exif: Exif data, from the TIFF header on.
    """
    height, width = frames.shape[1:3]
    flags = ANIMATION | (EXIF if exif else 0)
    head = bytes([flags, 0, 0, 0]) + _three(width - 1) + _three(height - 1)
    edges = [round(number * 1000 / fps) for number in range(len(frames) + 1)]
    chunks = [_chunk(b"VP8X", head), _chunk(b"ANIM", bytes(6))]
    for place, (start, end) in zip(_changes(frames), itertools.pairwise(edges), strict=True):
        number, top, left, bottom, right = place
        sides = _three(right - left - 1) + _three(bottom - top - 1)
        about = _three(left // 2) + _three(top // 2) + sides + _three(max(1, end - start))
        pixels = _lossless(frames[number, top:bottom, left:right])
        chunks.append(_chunk(b"ANMF", about + bytes([DO_NOT_BLEND]) + pixels))
    if exif:
        chunks.append(_chunk(b"EXIF", exif))
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _changes(frames: np.ndarray) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each frame's number, and top, left, bottom and right of its changed region.

    Top and left are even, as the container requires; if nothing differs, the region is one pixel.
    """
    yield 0, 0, 0, frames.shape[1], frames.shape[2]
    for number in range(1, len(frames)):
        differs = (frames[number] != frames[number - 1]).any(axis=2)
        rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
        if not len(rows):
            yield number, 0, 0, 1, 1
            continue
        top, left = int(rows[0]) // 2 * 2, int(columns[0]) // 2 * 2
        yield number, top, left, int(rows[-1]) + 1, int(columns[-1]) + 1


def _lossless(pixels: np.ndarray) -> bytes:
    """Return pixels (h, w, 3) as a VP8L chunk, taken from a complete file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="WEBP", lossless=True)
    data = file.getvalue()
    assert data[12:16] == b"VP8L"
    return data[12:]


def _chunk(name: bytes, content: bytes) -> bytes:
    """Return name, length, content, and a padding byte if the length is odd."""
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")
