"""Checks that the parts of a recipe share."""

from collections.abc import Iterator

Faults = Iterator[tuple[str, str]]
"""(key, what is wrong with it), of as many keys as there is something to say about."""


def at_least(low: float, **values: float | None) -> Faults:
    """A fault for each of the named values that lies below `low`."""
    for name, value in values.items():
        if value is not None and value < low:
            yield name, f"must be at least {low}, got {value}"


def fraction(**values: float) -> Faults:
    """A fault for each of the named values outside 0 … 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            yield name, f"must lie between 0 and 1, got {value}"
