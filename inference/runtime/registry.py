"""Registries: things by the names that recipes have for them."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar


class Entry(Protocol):
    """What a registry holds: a function, and what is known of it."""

    @property
    def function(self) -> Any:
        """The function that the name stands for."""


EntryType = TypeVar("EntryType", bound=Entry)


def register(registry: dict[str, EntryType], name: str, entry: EntryType) -> None:
    """Enter a function under a name; one whose module is loaded again takes its own place.

    Raises:
        ValueError: another function has the name.
    """
    known = registry.get(name)
    if known is not None and whole_name(known.function) != whole_name(entry.function):
        raise ValueError(f"{name!r} is taken by {whole_name(known.function)}; choose another name")
    registry[name] = entry


def whole_name(function: Any) -> str:
    """Return `module.function`."""
    return f"{function.__module__}.{function.__qualname__}"
