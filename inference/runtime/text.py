"""Numbers as text."""

from __future__ import annotations


def number(value: object) -> str:
    """7.0 is written 7, as A1111's page writes it."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
