"""Building blocks of recipe checks."""

from collections.abc import Iterator

Faults = Iterator[tuple[str, str]]
"""Pairs of (recipe key, problem)."""


def at_least(low: float, **values: float | None) -> Faults:
    """Yield an error for each of the named values below `low`."""
    for name, value in values.items():
        if value is not None and value < low:
            yield name, f"must be at least {low}, got {value}"


def fraction(**values: float) -> Faults:
    """Yield an error for each of the named values outside 0 … 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            yield name, f"must lie between 0 and 1, got {value}"
