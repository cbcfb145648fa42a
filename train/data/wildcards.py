"""Captions with parts to choose from, `{red|blue|}` (kohya sd-scripts: enable_wildcard)."""

import itertools
import random
from collections.abc import Iterator
from math import prod


def parts_of(text: str) -> list[tuple[str, ...]]:
    """A text as parts one after the other, each with all that may stand there.

    `{{` and `}}` are braces. A brace without its partner, `{}`, and an opening brace within braces
    are as they are written.
    """
    parts: list[tuple[str, ...]] = []
    plain, inside = "", None  # what has been read, and the choices of open braces
    place = 0
    while place < len(text):
        pair, sign = text[place : place + 2], text[place]
        place += 1
        if pair in ("{{", "}}"):
            plain += sign
            place += 1
        elif sign == "{" and inside is None and not text.startswith("}", place):
            parts.append((plain,))
            plain, inside = "", []
        elif sign == "|" and inside is not None:
            inside.append(plain)
            plain = ""
        elif sign == "}" and inside is not None:
            parts.append((*inside, plain))
            plain, inside = "", None
        else:
            plain += sign
    if inside is not None:
        plain = "{" + "|".join([*inside, plain])
    return [*parts, (plain,)]


def choose(text: str, draw: random.Random) -> str:
    """The text with one of the choices at each place, all equally likely."""
    return "".join(
        part[0] if len(part) == 1 else part[draw.randrange(len(part))] for part in parts_of(text)
    )


def count_choices(text: str) -> int:
    """How many ways there are to choose; several may give the same text."""
    return prod(map(len, parts_of(text)))


def all_choices(text: str) -> Iterator[str]:
    """What `choose` can give, the first of all choices first."""
    return map("".join, itertools.product(*parts_of(text)))


def longest_choice(text: str) -> str:
    """The text with the choice of most characters at each place."""
    return "".join(max(part, key=len) for part in parts_of(text))
