"""Builders of picture files that no program here writes: PNG, TIFF and ICC by their bytes."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

SRGB_D50 = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))
"""X, Y, Z of sRGB's red, green and blue, as ICC profiles have them."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    row: bytes,
    *more: bytes,
    rows: int | None = None,
) -> bytes:
    """A PNG of equal rows; `more` are chunks that stand before the pixels."""
    width, height = size
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    data = zlib.compress((b"\0" + row) * (height if rows is None else rows))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *more, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def tiff(tags: Mapping[int, Sequence[int] | int], data: bytes, is_big: bool = False) -> bytes:
    """A TIFF of one strip; numbers of tags are 16 bits wide."""
    order = ">" if is_big else "<"
    entries: dict[int, tuple[int, list[int]]] = {
        tag: (3, [value] if isinstance(value, int) else list(value)) for tag, value in tags.items()
    }
    entries |= {273: (4, [8]), 279: (4, [len(data)])}
    start = 8 + len(data) + len(data) % 2
    beyond, at = b"", start + 2 + 12 * len(entries) + 4
    listed = struct.pack(order + "H", len(entries))
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack(order + "I", at + len(beyond)), beyond + packed
        listed += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"MM\0*" if is_big else b"II*\0") + struct.pack(order + "I", start)
    return head + data + b"\0" * (len(data) % 2) + listed + b"\0" * 4 + beyond


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(
    space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ "
) -> bytes:
    """An ICC profile, version 2.4."""
    listed, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        listed += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI", at + len(body), b"\0" * 4, 0x02400000) + kind + space + pcs
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + listed + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def gamma(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256)) + b"\0\0"


def srgb_curve() -> bytes:
    """sRGB's own, in 1024 steps."""
    values = np.arange(1024) / 1023
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    numbers = np.rint(linear * 65535).astype(">u2").tobytes()
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + numbers


def rgb_profile(curve: bytes, order: Sequence[int] = (0, 1, 2)) -> bytes:
    """Colours as sRGB's, or in another order: with (2, 1, 0) red is called blue."""
    places = zip((b"rXYZ", b"gXYZ", b"bXYZ"), order, strict=True)
    tags = {name: xyz(*SRGB_D50[place]) for name, place in places}
    tags |= {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    return icc(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(curve: bytes) -> bytes:
    return icc(b"GRAY", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": curve})


def ink_profile() -> bytes:
    """Of CMYK in which cyan is black, and other inks cannot be seen."""
    straight = bytes(range(256))
    places = np.array([[0 if place & 8 else 255, 128, 128] for place in range(16)], np.uint8)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += straight * 4 + places.tobytes() + straight * 3
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"A2B0": table}
    return icc(b"CMYK", tags, b"prtr", b"Lab ")
