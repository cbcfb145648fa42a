"""Standard output and error that outlive their readers.

A closed pipe (`| head`), a lost terminal or a full disk below a log must not end hours of work:
what cannot be written is dropped.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room, or without room for so large a file."""


class LossyOutput(io.RawIOBase):
    """Writes to a descriptor without a buffer, and drops what cannot be written."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.error: OSError | None = None
        """The first error of writing."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.descriptor

    def writable(self) -> bool:
        """Return that this can be written to."""
        return True

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal that still exists."""
        try:
            return os.isatty(self.descriptor)
        except OSError:
            return False

    def write(self, data: Any) -> int:
        """Write the data as far as possible; return its whole length."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except OSError as error:
            self.error = self.error or error
        return length


@contextmanager
def lasting_streams(is_process: bool) -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` drop what cannot be written, while the block lasts.

    Streams that somebody else has replaced stay as they are. With `is_process`, descriptors that
    were closed at the start lead to the null device: a file that is opened later would take them.
    """
    if is_process:
        occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__ and (sys.stdout is not None or is_process):
        sys.stdout = lasting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__ and (sys.stderr is not None or is_process):
        sys.stderr = lasting(sys.stderr, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and output_of(stream) is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def lasting(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """Return a text stream that writes to the same place; every character can be written."""
    if stream is not None:
        stream.flush()
        descriptor = stream.fileno()
    errors = stream.errors if stream is not None else "strict"
    output: Any = LossyOutput(descriptor)  # unbuffered, as that of `python -u`
    return io.TextIOWrapper(
        output,
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace" if errors == "strict" else errors,
        line_buffering=True,
    )


def output_of(stream: Any) -> LossyOutput | None:
    """Return what a stream of `lasting` writes to; None for another stream."""
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, LossyOutput):
        return stream.buffer
    return None


def lost_output() -> OSError | None:
    """Return why a part of standard output is missing, if the disk is full; else None.

    A reader that has seen enough, or a terminal that is gone, misses nothing.
    """
    output = output_of(sys.stdout)
    if output is None:
        return None
    sys.stdout.flush()
    return output.error if output.error and output.error.errno in FULL else None


def occupy_closed_descriptors() -> None:
    """Open the null device in place of closed standard streams."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
