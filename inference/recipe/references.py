"""References between the values of a recipe: `${optimizer.learning_rate}`, `${.rank}`.

A reference names another value of the same recipe, and nothing else: neither the environment nor
files nor functions, since recipes come from other people and what they say ends up in artifacts and
pictures. What references expand to is bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from inference.recipe.yaml_nodes import cut

MISSING: Any = "???"
"""Default of a field that a recipe must set."""

MOST_TEXT = 2**24
"""Maximum number of characters that the references of a recipe expand to, all together."""
DEEPEST_REFERENCE = 32
"""Maximum number of references that lead to a value, one after the other."""

ESCAPED_MISSING = re.compile(r"\\+\?\?\?")
NAME = r"(?:[^\\{}\[\]:.]|\\.)+"
TARGET = re.compile(
    rf"(?P<dots>\.*)(?P<names>(?:{NAME}|\[{NAME}\])(?:\.{NAME}|\[{NAME}\])*)\}}", re.DOTALL
)
ONE_NAME = re.compile(NAME, re.DOTALL)


def reference(target: str) -> Any:
    """Return the default of a field that takes the value of another one: `reference(".rank")`."""
    return f"${{{target}}}"


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


@dataclass(frozen=True)
class Reference:
    """A text of the recipe that contains references."""

    parts: tuple[str | Target, ...]

    @property
    def first(self) -> Target:
        """Return the first value that is named."""
        return next(part for part in self.parts if isinstance(part, Target))

    @property
    def only(self) -> Target | None:
        """Return the value that the text is, if it is nothing but a reference."""
        return self.first if len(self.parts) == 1 else None


class Absent:
    """The value of a field that must be given, and is not yet."""


ABSENT = Absent()


def read_text(text: str) -> str | Reference | Absent:
    """Return a text as it is meant, what it refers to, or that it stands for a missing value.

    Raises:
        ReferenceFault: a reference is not of a form that recipes have.
    """
    if text == MISSING:
        return ABSENT
    if ESCAPED_MISSING.fullmatch(text):
        return text[1:]
    parts: list[str | Target] = []
    literal: list[str] = []
    at = 0
    while (begin := text.find("${", at)) >= 0:
        before = text[at:begin]
        slashes = len(before) - len(before.rstrip("\\"))
        literal.append(before[: len(before) - slashes] + "\\" * (slashes // 2))
        at = begin + 2
        if slashes % 2:
            literal.append("${")
            continue
        target = _target(text, begin)
        at = begin + len(target.text)
        if any(literal):
            parts.append("".join(literal))
        parts.append(target)
        literal = []
    literal.append(text[at:])
    if any(literal):
        parts.append("".join(literal))
    if any(isinstance(part, Target) for part in parts):
        return Reference(tuple(parts))
    return "".join(literal)


def unfilled(written: str, why: str) -> str:
    """Return the message for a reference that cannot be resolved."""
    what = cut(written)
    return f"{what} stands for another value of the recipe ({why}); for text write \\{what}"


def _target(text: str, begin: int) -> Target:
    """Return the reference that begins at a position.

    Raises:
        ReferenceFault: it is not of a form that recipes have.
    """
    match = TARGET.match(text, begin + 2)
    if match is not None:
        names = tuple(re.sub(r"\\(.)", r"\1", name) for name in ONE_NAME.findall(match["names"]))
        return Target(text[begin : match.end()], len(match["dots"]), names)
    end = text.find("}", begin)
    written = text[begin : end + 1] if end >= 0 else text[begin:]
    inner = written[2:]
    if "${" in inner:
        raise ReferenceFault(unfilled(written, "a reference cannot contain another one"))
    if ":" in inner:
        raise ReferenceFault(
            f"{cut(written)}: a recipe refers only to its own values, as ${{optimizer.type}}, not "
            "to the environment, files or functions; write the value itself, or give it on the "
            f"command line; for text write \\{cut(written)}"
        )
    why = "it names no key" if end >= 0 else "it has no closing }"
    raise ReferenceFault(unfilled(written, why))
