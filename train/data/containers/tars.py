"""Tar files, as webdataset writes them (POSIX ustar and pax, GNU long names)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from train.common import DataError
from train.data.containers.members import Archive, plain_name

BLOCK = 512
FILES = (b"0", b"\0", b"7")
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL, SPARSE = b"L", b"K", b"x", b"g", b"S"
LINKS = (b"1", b"2")
MOST_HEADER = 2**20
"""Maximum size of long names and pax headers."""
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass
class Header:
    """A member as described by the header blocks before its data."""

    name: str
    size: int
    kind: bytes
    data: int
    """Offset of its bytes."""
    sparse: bool = False


@dataclass
class ExtendedHeader:
    """Values for a member from the headers before it."""

    name: str | None = None
    pax: dict[str, str] = field(default_factory=dict)


class Tar(Archive):
    """A tar with random access to its members; rejected as truncated without its end marker."""

    def scan(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for header in headers(self.path):
            if header.kind in LINKS:
                self.left_out["links"] += 1
            if header.kind not in FILES:
                continue
            name = plain_name(header.name)
            if header.sparse:
                raise DataError(
                    f"{self.path}: {name!r} is a sparse file, which no picture is; pack it again"
                )
            self.count_left_out(name)
            yield name, (header.data, header.size)

    def read(self, member: str) -> bytes:
        place = self.index.find(member)
        if place is None:
            raise self.missing(member)
        offset, size = place
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise self.damaged(member, f"{size - len(data)} bytes are missing")
        return data


def headers(path: Path) -> Iterator[Header]:
    """Yield the members of a tar in order.

    Raises:
        DataError: it is compressed, truncated, or not a tar.
    """
    with path.open("rb", buffering=0) as file:
        descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
        position, extended = 0, ExtendedHeader()
        last = "its beginning"
        while True:
            block = os.pread(descriptor, BLOCK, position)
            if len(block) == BLOCK and not any(block):
                return
            if len(block) < BLOCK:
                raise _cut_off(path, last, BLOCK - len(block))
            header = _parsed(path, block, position, extended, last)
            if (lacking := header.data + header.size - end) > 0:
                raise _cut_off(path, repr(header.name), lacking)
            position = header.data + -(-header.size // BLOCK) * BLOCK
            if header.kind in (LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL):
                if header.size > MOST_HEADER:
                    raise DataError(
                        f"{path}: damaged after {last}: a header of {header.size} bytes"
                    )
                _take(extended, header, os.pread(descriptor, header.size, header.data), path)
                continue
            last, extended = repr(header.name), ExtendedHeader()
            yield header


def _parsed(path: Path, block: bytes, position: int, extended: ExtendedHeader, last: str) -> Header:
    if position == 0:
        for magic, command in COMPRESSED.items():
            if block.startswith(magic):
                raise DataError(
                    f"{path}: is compressed, so that nothing in it can be read by itself; "
                    f"{command} it and name the .tar"
                )
    try:
        checksum = _number(block[148:156])
        size = int(extended.pax["size"]) if "size" in extended.pax else _number(block[124:136])
        sound = checksum == sum(block) - sum(block[148:156]) + 8 * ord(" ") and size >= 0
    except ValueError:
        sound, size = False, 0
    if not sound:
        where = f"damaged after {last}" if position else "is no tar file"
        raise DataError(f"{path}: {where}; download or pack it again")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    kind, name = block[156:157], extended.pax.get("path", extended.name or name)
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"
    sparse = kind == SPARSE or any(key.startswith("GNU.sparse") for key in extended.pax)
    has_data = kind not in (b"1", b"2", b"3", b"4", b"5", b"6")
    return Header(name, size if has_data else 0, kind, position + BLOCK, sparse)


def _take(extended: ExtendedHeader, header: Header, data: bytes, path: Path) -> None:
    """Store what a header says about the member after it."""
    if header.kind == LONG_NAME:
        extended.name = _text(data)
    if header.kind != PAX:
        return
    place = 0
    try:
        while place < len(data) and data[place]:
            length = int(data[place : data.index(b" ", place)])
            record = data[place : place + length]
            key, _, value = record[record.index(b" ") + 1 : -1].partition(b"=")
            extended.pax[key.decode()] = value.decode("utf-8", "surrogateescape")
            place += max(length, 1)
    except ValueError:
        raise DataError(f"{path}: damaged: a pax header cannot be read; pack it again") from None


def _number(field: bytes) -> int:
    """Parse octal digits, or with the first bit set a number in bytes (GNU).

    Raises:
        ValueError: it is neither.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _cut_off(path: Path, member: str, lacking: int) -> DataError:
    return DataError(
        f"{path}: truncated: it ends within or after {member}, where at least {lacking} more bytes "
        "should be; download or pack it again"
    )
