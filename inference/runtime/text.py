"""Text for people: numbers, and what is printed.

Names, captions and metadata come from files of others. Whatever is printed passes `printable`, so
that they can neither command the terminal nor hide what they say.
"""

from __future__ import annotations

import re
import sys

UNPRINTABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions of writing
    "\u2028\u2029\ud800-\udfff]"  # other line ends, halves of characters
)


PASSWORD = re.compile(r"(?<=://)[^/\s@:'\"]*:[^/\s@'\"]+@")
"""`user:password@` in an address."""


def without_passwords(text: str) -> str:
    """Return a text with addresses as `https://host/…` that were `https://user:password@host/…`."""
    return PASSWORD.sub("", text)


def number(value: object) -> str:
    """Return a number as A1111's page writes it: 7.0 as 7."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def printable(text: str) -> str:
    r"""Return a text with control characters and directions of writing escaped, as `\x1b`.

    Newlines and tabs stay; passwords in addresses are left out.
    """
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], without_passwords(text))


def output(text: object = "", *, is_error: bool = False) -> None:
    """Print a text for people at once: to standard output, or to standard error."""
    print(printable(str(text)), file=sys.stderr if is_error else sys.stdout, flush=True)
