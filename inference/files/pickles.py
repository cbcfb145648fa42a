"""Pickled artifacts, with the records that the checks of A1111 and Forge allow.

Their `modules/safe.py` refuses a file with any other record as possibly malicious, and older
versions of it refuse `byteorder` too; torch.save adds this one and, from 2.13 on, two others.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from inference.files.atomic import write_atomically

RECORDS = re.compile(r"[^/]+/(data\.pkl|data/\d+|version)")
"""The records that are written: structure, storages, and the version of the format."""
ALIGNMENT = 64
"""The contents of records begin at multiples of this many bytes, as torch.save aligns them."""
FIXED_HEADER = 30
"""Bytes of a record's header before its name."""
PADDING = b"FB"
"""Begins torch's padding in the extra field of a record's header."""


def write_pickle(path: Path, content: dict[Any, Any]) -> None:
    """Write a dict of tensors and plain data atomically, as every version of torch reads it.

    Equal content gives equal bytes.
    """
    data = pickle_bytes(content)
    write_atomically(path, lambda unfinished: unfinished.write_bytes(data))


def pickle_bytes(content: dict[Any, Any]) -> bytes:
    """Return what torch.save writes, less the records that other programs do not know."""
    saved, kept = io.BytesIO(), io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(kept, "w") as target:
        for name in filter(RECORDS.fullmatch, source.namelist()):
            record = zipfile.ZipInfo(name)  # its date is 1980-01-01
            start = kept.tell() + FIXED_HEADER + len(name.encode())
            record.extra = padding(start)
            target.writestr(record, source.read(name))
    return kept.getvalue()


def padding(start: int) -> bytes:
    """Return the extra field, at offset `start`, after which a record's content is aligned."""
    length = -(start + 4) % ALIGNMENT
    return PADDING + length.to_bytes(2, "little") + b"Z" * length
