"""How large the numbers of a recipe can be.

Recipes also come from pictures and from settings files of others. A number far beyond all use would
exhaust the memory, overflow where it is computed with, or never end. Every number therefore has a
limit, also in the negative: that of its dataclass (`limits: ClassVar = {"width": 16384}`), else one
for all numbers of its type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from inference.recipe.schema import fields_of, without_none

LARGEST_WHOLE = 2**31 - 1
LARGEST_REAL = 1e12
NO_LIMIT = math.inf
"""For options that check their range themselves."""


def limit_faults(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields of a recipe's dataclass with a number beyond its limit."""
    for name, limit in _limited(type(part)):
        value = getattr(part, name)
        if value is None:
            continue
        if type(value) in (int, float):
            found: Mapping[str, Any] = {name: value}
        elif isinstance(value, dict):
            found = {f"{name}.{key}": one for key, one in value.items()}
        else:
            found = dict.fromkeys([name], max(value, key=abs, default=0))
        for key, number in found.items():
            if type(number) in (int, float) and not abs(number) <= limit:
                shown = limit if isinstance(limit, int) else f"{limit:g}"
                bound = f"at most {shown}" if number > 0 else f"at least -{shown}"
                yield key, f"must be {bound}, got {number}"


@cache
def _limited(kind: type) -> tuple[tuple[str, float], ...]:
    """Return the fields of a dataclass that hold numbers, with their limits."""
    own: dict[str, float] = {}
    for base in reversed(kind.__mro__):
        own |= vars(base).get("limits", {})
    found = []
    for name, hint in fields_of(kind).items():
        one, _ = without_none(hint)
        if get_origin(one) in (list, tuple, dict):
            one, _ = without_none(get_args(one)[-1 if get_origin(one) is dict else 0])
        if one in (int, float):
            found.append((name, own.get(name, LARGEST_WHOLE if one is int else LARGEST_REAL)))
    return tuple(found)
