"""Animated WebP without loss, frame for frame.

Pillow's writer (libwebp's `WebPAnimEncoder`) joins frames that are equal, so that fewer come back,
and a clip that stands still becomes a picture. Here every frame stays one: Pillow encodes what
changed, and the container is put together by its description, "WebP Container Specification"
(developers.google.com/speed/webp/docs/riff_container).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

LARGEST_SIDE = 2**14 - 1
"""Pixels of what VP8L holds."""
EXIF, ANIMATION = 0x08, 0x02
"""Flags of the VP8X chunk."""
DO_NOT_BLEND = 0x02
"""Flag of an ANMF chunk: its pixels take the place of those before."""


def animated_webp(frames: np.ndarray, fps: float, exif: bytes = b"") -> bytes:
    """A whole file, which repeats for ever; the same frames give the same bytes.

    Args:
        frames: (f, h, w, 3), uint8; sides of at most `LARGEST_SIDE`.
        fps: frames in a second; times are held to 1/1000 s without drifting.
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
    """Of each frame the number, and top, left, bottom and right of what differs from the last.

    Top and left are even, as the container wants them; where nothing differs it is one pixel.
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
    """Pixels (h, w, 3) as a VP8L chunk, cut out of a file of their own."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="WEBP", lossless=True)
    data = file.getvalue()
    assert data[12:16] == b"VP8L"
    return data[12:]


def _chunk(name: bytes, content: bytes) -> bytes:
    """Name, length, content, and a byte more where the length is odd."""
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")
