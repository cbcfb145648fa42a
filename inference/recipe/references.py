"""References between the values of a recipe: `${optimizer.learning_rate}`, `${.rank}`.

A reference names another value of the same recipe, and nothing else: neither the environment nor
files nor functions, since recipes come from other people and what they say ends up in artifacts and
pictures. OmegaConf resolves references; what it would do without limits is checked here before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import MISSING, SI

from inference.recipe.schema import REFERENCE
from inference.recipe.yaml_nodes import cut

__all__ = ["MISSING", "reference"]

MOST_TEXT = 2**22
"""Maximum number of characters that the references of a recipe expand to, all together."""
LENGTH_OF_ONE = 256
"""Number of characters that a `${` itself counts as, since OmegaConf takes time for each."""
DEEPEST_REFERENCE = 32
"""Maximum number of references that lead to a value, one after the other."""
TOO_DEEP = f"it leads through more than {DEEPEST_REFERENCE} others"
GROUP = "it names a group of values, not one"
HOLDERS = (dict, list, tuple)

NAME = r"""[^\\{}()\[\]:.\s'"]+"""
TARGET = re.compile(
    rf"\$\{{\s*(?P<dots>\.*)(?P<names>(?:{NAME}|\[{NAME}\])(?:\.{NAME}|\[{NAME}\])*)\s*\}}"
)

Key = tuple[str | int, ...]


def reference(target: str) -> Any:
    """Return the default of a field that takes the value of another one: `reference(".rank")`."""
    return SI(f"${{{target}}}")


class ReferenceFault(ValueError):  # noqa: N818 - a fault of the recipe, reported as a line
    """A reference that cannot be resolved; its text is the message."""


class ExpansionFault(ReferenceFault):
    """The references of a recipe expand to too much."""


@dataclass(frozen=True)
class Target:
    """The value that a reference names."""

    text: str
    """As written, with `${` and `}`."""
    dots: int
    """Leading dots: 0 counts from the recipe, 1 from the group that holds the reference."""
    names: tuple[str, ...]

    def key(self, place: Key) -> Key | None:
        """Return the key of the value, seen from a place; None if there are too many dots."""
        if self.dots > len(place):
            return None
        return (*place[: len(place) - self.dots], *self.names) if self.dots else self.names


def targets(text: str) -> list[Target]:
    """Return the values that a text of a recipe refers to.

    Raises:
        ReferenceFault: a reference is not of a form that recipes have.
    """
    found = []
    for begin in REFERENCE.finditer(text):
        match = TARGET.match(text, begin.end() - 2)
        if match is None:
            raise ReferenceFault(_malformed(text, begin.end() - 2))
        names = tuple(re.findall(NAME, match["names"]))
        found.append(Target(match[0], len(match["dots"]), names))
    return found


def check_form(value: Any) -> None:
    """Check the form of the references in a value that a source sets.

    Raises:
        ReferenceFault: a reference is not of a form that recipes have.
    """
    if isinstance(value, str):
        targets(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            check_form(inner)


def unfilled(written: str, why: str) -> str:
    """Return the message for a reference that cannot be resolved."""
    what = cut(written)
    return f"{what} stands for another value of the recipe ({why}); for text write {escaped(what)}"


def escaped(text: str) -> str:
    """Return a text whose references are text."""
    return text.replace("${", "\\${")


def _malformed(text: str, begin: int) -> str:
    """Return the message for a reference of another form that begins at a position."""
    end = text.find("}", begin)
    written = text[begin : end + 1] if end >= 0 else text[begin:]
    if "${" in written[2:]:
        return unfilled(written, "a reference cannot contain another one")
    if ":" in written:
        return (
            f"{cut(written)}: a recipe refers only to its own values, as ${{optimizer.type}}, not "
            "to the environment, files or functions; write the value itself, or give it on the "
            f"command line; for text write {escaped(cut(written))}"
        )
    return unfilled(written, "it names no key" if end >= 0 else "it has no closing }")


class Size(NamedTuple):
    """What a value expands to."""

    length: int
    """Characters of the text, or of all items of the list."""
    depth: int
    """References that lead to it, one after another."""
    is_list: bool


class References:
    """The references of a recipe whose values are a tree, and what each expands to."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.texts = dict(texts(tree))
        self.sizes: dict[Key, Size] = {}
        """What was measured before; a text comes after those that it refers to."""
        self.asking: list[Key] = []
        """The keys that are being measured, each for the one before it."""

    def faults(self) -> dict[Key, str]:
        """Return the keys of references that cannot be resolved, with messages.

        Raises:
            ExpansionFault: all together expand to too much.
        """
        found: dict[Key, str] = {}
        total = 0
        for key, text in self.texts.items():
            try:
                total += self.size(key, text).length
            except ReferenceFault as error:
                found[key] = str(error)
            if total > MOST_TEXT:
                why = f"all references together expand to more than {MOST_TEXT >> 20} MiB"
                raise ExpansionFault(unfilled(text, why))
        return found

    def size(self, key: Key, value: Any) -> Size:
        """Return what a text or a number expands to.

        Raises:
            ReferenceFault: it refers to nothing, to itself, to a group, or through too many.
        """
        if not isinstance(value, str) or "${" not in value:
            return Size(len(str(value)), 0, False)
        if key not in self.sizes:
            found = targets(value)
            if found and key in self.asking:
                raise ReferenceFault(unfilled(found[0].text, "it leads back to itself"))
            if found and len(self.asking) >= DEEPEST_REFERENCE:
                raise ReferenceFault(unfilled(found[0].text, TOO_DEEP))
            self.asking.append(key)
            try:
                self.sizes[key] = self.expanded(key, value, found)
            finally:
                self.asking.pop()
        return self.sizes[key]

    def expanded(self, key: Key, text: str, found: list[Target]) -> Size:
        """Return what a text with these references expands to, as `size`."""
        length, depth, is_list = len(text) + LENGTH_OF_ONE * text.count("${"), 0, False
        for target in found:
            inner = self.size_of(target, key)
            if inner.is_list and target.text != text:
                raise ReferenceFault(unfilled(target.text, "a list cannot be part of a text"))
            if inner.depth >= DEEPEST_REFERENCE:
                raise ReferenceFault(unfilled(target.text, TOO_DEEP))
            length, depth = length + inner.length, max(depth, inner.depth + 1)
            is_list = inner.is_list
        return Size(length, depth, is_list)

    def size_of(self, target: Target, place: Key) -> Size:
        """Return the size of the value that a reference names, seen from a place, as `size`."""
        key, value = self.find(target, place)
        if not isinstance(value, HOLDERS):
            return self.size(key, value)
        if isinstance(value, dict) or any(isinstance(item, HOLDERS) for item in value):
            raise ReferenceFault(unfilled(target.text, GROUP))
        sizes = [self.size((*key, index), item) for index, item in enumerate(value)]
        if any(size.is_list for size in sizes):
            raise ReferenceFault(unfilled(target.text, GROUP))
        depth = max((size.depth for size in sizes), default=0)
        return Size(sum(size.length + 1 for size in sizes), depth, True)

    def find(self, target: Target, seen_from: Key) -> tuple[Key, Any]:
        """Return the key and the value that a reference names, seen from a place.

        Raises:
            ReferenceFault: there is none.
        """
        names = target.key(seen_from)
        if names is None:
            raise ReferenceFault(unfilled(target.text, "it has too many leading dots"))
        key: Key = ()
        value: Any = self.tree
        for name in names:
            index: Any = name
            if isinstance(value, list | tuple):
                index = int(name) if re.fullmatch("[0-9]{1,9}", str(name)) else None
                is_there = index in range(len(value))
            else:
                is_there = isinstance(value, dict) and name in value
            if not is_there:
                why = f"Interpolation key {'.'.join(target.names)!r} not found"
                raise ReferenceFault(unfilled(target.text, why))
            key, value = (*key, index), value[index]
        return key, value


def texts(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield the keys and texts of a tree of values that contain references, or `${` as text."""
    if isinstance(value, str):
        if "${" in value:
            yield key, value
    elif isinstance(value, dict | list | tuple):
        named = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in named:
            yield from texts(inner, (*key, name))
