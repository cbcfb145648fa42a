"""Building blocks of recipe checks."""

import re
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


MOST_NAME_BYTES = 200
"""Bytes of a name; most disks allow 255 for a file, and steps and suffixes are added."""


def name_fault(name: str, kind: str) -> str | None:
    """Return why a file or folder (`kind`) cannot have this name everywhere; None if it can."""
    if not name.strip() or name.startswith(".") or "/" in name:
        return f"must be the name of a {kind}, got {name!r}"
    if not name.isprintable():
        return f"must not contain line breaks or other control characters, got {name!r}"
    if name != name.strip() or name.endswith("."):
        return f"must not begin or end with a space, nor end with a dot, got {name!r}"
    if (size := len(name.encode("utf-8", "surrogatepass"))) > MOST_NAME_BYTES:
        return f"is too long for the name of a {kind}: {size} bytes of at most {MOST_NAME_BYTES}"
    return None


def artifact_name_fault(name: str) -> str | None:
    """Return why artifacts cannot be called by this name; None if they can."""
    if (fault := name_fault(name, "file")) is not None:
        return fault
    if set(name) & set('\\:*?"<>|'):
        return f"must be the name of a file, got {name!r}"
    if name.lower().endswith((".safetensors", ".pt", ".png", ".bin", ".ckpt")):
        return f"is given without the suffix; got {name!r}"
    if re.search(r"-\d{6,}$", name):
        return (
            f"must not end like the artifact of a step, got {name!r}: NAME-000500 is step 500 of "
            "NAME, and the newest artifact would replace it"
        )
    return None
