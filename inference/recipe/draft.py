"""The values of a recipe while it is being read, and the dataclasses that they become."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from inference.recipe.references import (
    ABSENT,
    DEEPEST_REFERENCE,
    MOST_TEXT,
    Absent,
    ExpansionFault,
    Reference,
    ReferenceFault,
    Target,
    read_text,
    unfilled,
)
from inference.recipe.schema import PLAIN_NUMBER, describe, fields_of, in_yaml, without_none
from inference.recipe.yaml_nodes import cut


class RefusedError(ValueError):
    """A value of another type than its key; the text is the message."""


@dataclass
class Group:
    """The values of a dataclass, or of a mapping with names of the user's choice.

    Values are groups, lists, mappings (below a key of any type), numbers, texts, None, and, until
    `References` has replaced them, `Reference` and `ABSENT`.
    """

    kind: Any
    """The dataclass, or `dict[str, ...]`."""
    values: dict[str, Any]

    @property
    def is_named(self) -> bool:
        """Return whether the names are of the user's choice."""
        return get_origin(self.kind) is dict

    def copy(self) -> Group:
        """Return a copy that shares nothing that can be modified."""
        return Group(self.kind, copied(self.values))


def copied(value: Any) -> Any:
    """Return a copy of a value of a draft that shares nothing that can be modified."""
    if type(value) is Group:
        return value.copy()
    if type(value) is dict:
        return {
            name: copied(inner) if type(inner) in HOLDERS else inner
            for name, inner in value.items()
        }
    return [copied(inner) for inner in value] if type(value) is list else value


HOLDERS = (Group, dict, list)
"""What holds other values in a draft."""


def blank(kind: type) -> Group:
    """Return the defaults of a dataclass."""
    return _blank(kind).copy()


@cache
def _blank(kind: type) -> Group:
    hints, values = fields_of(kind), {}
    for field in dataclasses.fields(kind):
        value: Any = ABSENT
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        values[field.name] = _stored(value, hints[field.name])
    return Group(kind, values)


def _stored(value: Any, hint: Any) -> Any:
    """Return a default as a draft holds it."""
    kind, _ = without_none(hint)
    if value is None or value is ABSENT:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = fields_of(type(value))
        values = {name: _stored(getattr(value, name), inner) for name, inner in hints.items()}
        return Group(type(value), values)
    if isinstance(value, dict) and get_origin(kind) is dict:
        inner = get_args(kind)[1]
        return Group(kind, {name: _stored(one, inner) for name, one in value.items()})
    return converted(value, kind)


def converted(value: Any, kind: Any) -> Any:
    """Return a value that a recipe has as one of a type, with its references still in it.

    Raises:
        RefusedError: it is of another type.
        ReferenceFault: it contains something that is no reference.
    """
    if isinstance(value, str):
        read = read_text(value)
        return fitted(read, kind) if isinstance(read, str) else read
    origin = get_origin(kind)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [converted(one, hint) for one, hint in _with_hints(value, kind)]
    if kind is Any and isinstance(value, dict):
        return {name: converted(one, Any) for name, one in value.items()}
    if kind is Any and isinstance(value, list | tuple):
        return [converted(one, Any) for one in value]
    return fitted(value, kind)


def _with_hints(values: Sequence[Any], kind: Any) -> Iterable[tuple[Any, Any]]:
    """Return the items of a list with their types.

    Raises:
        RefusedError: the list has a fixed length, which is another one; an item is null.
    """
    arguments = get_args(kind)
    is_fixed = get_origin(kind) is tuple and ... not in arguments
    if is_fixed and len(arguments) != len(values):
        raise RefusedError(f"expected {describe(kind)}, got {in_yaml(list(values))}")
    hints = [without_none(hint) for hint in arguments]
    if not hints[0][1] and any(value is None for value in values):
        raise RefusedError(f"expected {describe(kind)}, got {in_yaml(list(values))}")
    inner = [hint for hint, _ in hints] if is_fixed else [hints[0][0]] * len(values)
    return zip(values, inner, strict=True)


def fitted(value: Any, kind: Any) -> Any:
    """Return a value without references as one of a type.

    Raises:
        RefusedError: it is of another type.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return _choice(value, kind)
    if origin is Union:
        return _one_of(value, kind)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [fitted(one, hint) for one, hint in _with_hints(value, kind)]
    if kind in FITTING:
        found = FITTING[kind](value)
    else:
        found = value if isinstance(kind, type) and isinstance(value, kind) else None
    if found is None:
        raise RefusedError(f"expected {describe(kind)}, got {in_yaml(value)}")
    return found


def _choice(value: Any, kind: Any) -> Any:
    for one in get_args(kind):
        if type(one) is type(value) and one == value:
            return one
    shown = cut(str(value), 200)
    raise RefusedError(f"Invalid value '{shown}', expected one of {list(get_args(kind))}")


def _one_of(value: Any, kind: Any) -> Any:
    for one in get_args(kind):
        if get_origin(one) is Literal:
            is_fit = any(type(each) is type(value) and each == value for each in get_args(one))
        else:
            is_fit = type(value) is one
        if is_fit:
            return value
    raise RefusedError(f"expected {describe(kind)}, got {in_yaml(value)}")


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and PLAIN_NUMBER.fullmatch(value):
        return int(value) if value.lstrip("+-").isdecimal() else None
    return value if type(value) is int else None


def _real(value: Any) -> float | None:
    if isinstance(value, str) and not PLAIN_NUMBER.fullmatch(value):
        return None
    number = float(value) if type(value) in (str, int, float) else math.nan
    return number if math.isfinite(number) else None


TRUE, FALSE = ("1", "yes", "y", "on", "true"), ("0", "no", "n", "off", "false")


def _truth(value: Any) -> bool | None:
    word = value.lower() if isinstance(value, str) else ""
    if word in TRUE or word in FALSE:
        return word in TRUE
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) else None


FITTING = {int: _whole, float: _real, bool: _truth, str: _text}


def merged_values(old: Any, new: Any) -> Any:
    """Return a value of any type over an older one: mappings are merged, others replaced."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {name: merged_values(old.get(name), value) for name, value in new.items()}


@dataclass(frozen=True)
class Level:
    """A group, mapping or list that holds values, and its type."""

    holder: Group | dict[str, Any] | list[Any]
    hint: Any

    @property
    def held(self) -> Any:
        """Return the values by name, or in order."""
        return self.holder.values if isinstance(self.holder, Group) else self.holder

    def names(self) -> Collection[Any]:
        """Return the names or indices of the values."""
        return range(len(self.held)) if isinstance(self.holder, list) else self.held

    def hint_of(self, name: Any) -> Any:
        """Return the type of a value."""
        if isinstance(self.holder, Group) and not self.holder.is_named:
            return fields_of(self.holder.kind)[name]
        kind, _ = without_none(self.hint)
        arguments = get_args(kind)
        if get_origin(kind) is dict:
            return arguments[1]
        return arguments[0] if get_origin(kind) in (list, tuple) else Any

    def below(self, name: Any) -> Level:
        """Return the level of a value that holds others."""
        value = self.held[name]
        return Level(value, value.kind if isinstance(value, Group) else self.hint_of(name))


Levels = tuple[Level, ...]
"""The levels that lead to a value, from the recipe down to the one that holds it."""


class References:
    """Resolves the references of a draft, in place."""

    def __init__(self) -> None:
        self.length = 0
        """Characters that references have expanded to so far."""
        self.asking: list[tuple[int, Any]] = []
        """The places that are being resolved, each for the one before it."""

    def resolve(self, path: Levels, name: Any) -> Any:
        """Return the value that a place of a draft refers to, and put it there.

        Raises:
            ReferenceFault: it refers to nothing, to itself, or to something of another type.
        """
        level = path[-1]
        found = level.held[name]
        if not isinstance(found, Reference):  # another reference has led here before
            return found
        place = (id(level.holder), name)
        if place in self.asking:
            raise ReferenceFault(unfilled(found.first.text, "it leads back to itself"))
        if len(self.asking) >= DEEPEST_REFERENCE:
            why = f"it leads through more than {DEEPEST_REFERENCE} others"
            raise ReferenceFault(unfilled(found.first.text, why))
        self.asking.append(place)
        try:
            value = self._expanded(found, path)
        finally:
            self.asking.pop()
        kind, is_optional = without_none(level.hint_of(name))
        try:
            level.held[name] = None if value is None and is_optional else fitted(value, kind)
        except RefusedError as error:
            raise ReferenceFault(unfilled(found.first.text, str(error))) from error
        return level.held[name]

    def _expanded(self, found: Reference, path: Levels) -> Any:
        if found.only is not None:
            value = self._value(found.only, path)
            self._count(found.only, value)
            return value
        texts = []
        for part in found.parts:
            value = self._value(part, path) if isinstance(part, Target) else part
            if isinstance(value, list):
                raise ReferenceFault(unfilled(found.first.text, "a list cannot be part of a text"))
            self._count(found.first, value)
            texts.append(str(value))
        return "".join(texts)

    def _count(self, target: Target, value: Any) -> None:
        """Add to what references have expanded to.

        Raises:
            ReferenceFault: it is too much.
        """
        items = value if isinstance(value, list) else [value]
        self.length += sum(len(str(item)) + 1 for item in items)
        if self.length > MOST_TEXT:
            why = f"all references together expand to more than {MOST_TEXT >> 20} MiB"
            raise ExpansionFault(unfilled(target.text, why))

    def _value(self, target: Target, path: Levels) -> Any:
        """Return the value that a reference names, seen from a place.

        Raises:
            ReferenceFault: there is none.
        """
        base = path[: len(path) - target.dots + 1] if target.dots else path[:1]
        if not base:
            raise ReferenceFault(unfilled(target.text, "it has too many leading dots"))
        lost = unfilled(target.text, f"Interpolation key {'.'.join(target.names)!r} not found")
        *above, last = target.names
        for name in above:
            key = _key(base[-1], name)
            if key not in base[-1].names() or not isinstance(base[-1].held[key], HOLDERS):
                raise ReferenceFault(lost)
            base = (*base, base[-1].below(key))
        key = _key(base[-1], last)
        if key not in base[-1].names():
            raise ReferenceFault(lost)
        return self._end(target, base, key)

    def _end(self, target: Target, base: Levels, key: Any) -> Any:
        """Return the value at the end of a reference's way."""
        value = base[-1].held[key]
        if isinstance(value, Reference):
            value = self.resolve(base, key)
        if value is ABSENT:
            raise ReferenceFault(unfilled(target.text, "which must be given"))
        is_group = isinstance(value, Group | dict)
        if is_group or (isinstance(value, list) and any(isinstance(one, HOLDERS) for one in value)):
            raise ReferenceFault(unfilled(target.text, "it names a group of values, not one"))
        if isinstance(value, list):
            level = base[-1].below(key)
            for index, item in enumerate(value):
                if isinstance(item, Reference):
                    self.resolve((*base, level), index)
        return value


def _key(level: Level, name: str) -> Any:
    is_index = isinstance(level.holder, list) and name.isdecimal()
    return int(name) if is_index and len(name) < 10 else name


def children(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names and values of a group, a mapping or a list."""
    held = holder.values if isinstance(holder, Group) else holder
    yield from enumerate(held) if isinstance(held, list) else held.items()


def built(value: Any, kind: Any = Any) -> Any:
    """Return the objects of a part of a draft without errors."""
    if isinstance(value, Group):
        return _built_group(value)
    if isinstance(value, dict):
        return {name: built(inner) for name, inner in value.items()}
    if isinstance(value, list):
        inner = [built(one) for one in value]
        return tuple(inner) if get_origin(without_none(kind)[0]) is tuple else inner
    assert not isinstance(value, Reference | Absent)
    return value


def _built_group(group: Group) -> Any:
    if group.is_named:
        inner = get_args(group.kind)[1]
        return {name: built(value, inner) for name, value in group.values.items()}
    hints, late = fields_of(group.kind), _late_fields(group.kind)
    values = {
        name: built(value, hints[name]) if type(value) in (*HOLDERS, Reference, Absent) else value
        for name, value in group.values.items()
        if name not in late
    }
    made = group.kind(**values)
    for name in late:
        setattr(made, name, built(group.values[name], hints[name]))
    return made


@cache
def _late_fields(kind: type) -> frozenset[str]:
    """Return the fields of a dataclass that its constructor does not take."""
    return frozenset(field.name for field in dataclasses.fields(kind) if not field.init)
