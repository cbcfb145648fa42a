"""Numbers as text."""

from __future__ import annotations


def number(value: object) -> str:
    """Return a number as A1111's page writes it: 7.0 as 7."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
