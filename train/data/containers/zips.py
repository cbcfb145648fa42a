"""Zip files."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from train.common import DataError
from train.data.containers.members import Archive, plain_name

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
ENCRYPTED = 1
MOST_BYTES = 2**31
"""Maximum size of an image."""


class Zip(Archive):
    """A zip whose members are stored or deflated."""

    def scan(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        try:
            with zipfile.ZipFile(self.path) as file:
                entries = file.infolist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError) as error:
            raise DataError(
                f"{self.path}: cannot be read as a zip: {error}; download or pack it again"
            ) from None
        for entry in entries:
            if entry.is_dir():
                continue
            name = plain_name(entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                self.left_out["links"] += 1
                continue
            if entry.flag_bits & ENCRYPTED:
                raise DataError(f"{self.path}: {name!r} is encrypted; unpack it with its password")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{self.path}: {name!r} is compressed by method {entry.compress_type}; only "
                    "stored and deflated members are read: pack it again"
                )
            self.count_left_out(name)
            sizes = entry.compress_size, entry.file_size
            yield name, (entry.header_offset, *sizes, entry.CRC, entry.compress_type)

    def read(self, member: str) -> bytes:
        place = self.index.find(member)
        if place is None:
            raise self.missing(member)
        offset, packed, size, crc, method = place
        if size > MOST_BYTES:
            raise self.damaged(member, f"it claims to be of {size} bytes")
        with self.path.open("rb") as file:
            file.seek(offset)
            header = file.read(LOCAL_HEADER.size)
            if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise self.damaged(member, "its header is not where it should be")
            *_, name, extra = LOCAL_HEADER.unpack(header)
            file.seek(name + extra, 1)
            data = file.read(packed)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise self.damaged(member, str(error)) from None
        if len(data) != size or zlib.crc32(data) != crc:
            raise self.damaged(member, "its bytes are not those that were packed")
        return data
