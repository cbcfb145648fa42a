"""Weights of parts of a prompt: `(a)`, `[a]`, `(a:1.3)`, and BREAK.

As in A1111 1.10.1 (`modules/prompt_parser.py`, `modules/sd_emphasis.py`), with two differences:
BREAK inside brackets is a BREAK (in A1111 it becomes the word), and a malformed number or weight is
an `InputError` with its position (A1111 aborts or gives a black image).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from inference.runtime import InputError

AROUND = 20
"""Characters of context shown on either side of a position."""


def place(text: str, position: int) -> str:
    """Return `character 12, at "…text around it…"`; characters are counted from 1."""
    start, end = max(0, position - AROUND), min(len(text), position + AROUND)
    around = " ".join(text[start:end].split())
    before, after = "…" if start else "", "…" if end < len(text) else ""
    return f"character {position + 1}, at “{before}{around}{after}”"


def fault(text: str, position: int, problem: str) -> InputError:
    """Return the error for a position (from 0) in a prompt."""
    return InputError(f"prompt, {place(text, position)}: {problem}")


EMPHASIS_MODES = ("Original", "No norm", "Ignore", "None")
"""Original: weights, then each chunk is rescaled to its original mean. No norm: weights alone.
Ignore: the syntax is parsed, but has no effect. None: brackets and BREAK are plain text."""

MORE = 1.1
"""Factor of `(a)`; `[a]` divides by it."""

MAX_DEPTH = 200
"""Maximum nesting of brackets; A1111 has no limit, but a weight of 1.1^200 is of no use."""

MAX_WEIGHT = 1e9
"""Maximum weight: products with larger ones overflow."""

TOKENS = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | (?P<weighted>:\s*(?P<number>[+-]?[.\d]+)\s*\))
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"\bBREAK\b")


class WeightedText(NamedTuple):
    """A part of a prompt, and the weight of its tokens."""

    text: str
    weight: float
    is_break: bool = False
    """The chunk ends here; weight -1, as A1111 marks it."""


BREAK_PIECE = WeightedText("BREAK", -1.0, True)


def parse_attention(text: str, emphasis: str = "Original") -> list[WeightedText]:
    r"""Parse a prompt into weighted parts, at least one; neighbours of equal weight are joined.

    `(a)` multiplies by 1.1, `[a]` divides by it, `(a:1.3)` multiplies by 1.3; nested factors
    multiply. Unclosed brackets close at the end. `\(`, `\)`, `\[`, `\]` and `\\` are literal
    characters; any other backslash is removed.

    Args:
        text: the prompt, or a part of it.
        emphasis: one of `EMPHASIS_MODES`.

    Raises:
        InputError: a weight is not a number (`(a:1.2.3)`) or too large, brackets are nested more
            than 200 deep, or the mode is unknown.
    """
    if emphasis not in EMPHASIS_MODES:
        raise InputError(f"emphasis: expected {', '.join(EMPHASIS_MODES)}; got {emphasis!r}")
    if emphasis == "None":
        return [WeightedText(text, 1.0)]
    pieces = joined(_Reader(text).read())
    if emphasis == "Ignore":
        return [piece if piece.is_break else piece._replace(weight=1.0) for piece in pieces]
    return pieces


class _Reader:
    """The state of the parser: parts so far, and the positions of unclosed brackets."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: list[WeightedText] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}

    def read(self) -> list[WeightedText]:
        for match in TOKENS.finditer(self.text):
            self.take(match)
        for bracket in "([":
            for start in self.open[bracket]:
                self.multiply(start, MORE if bracket == "(" else 1 / MORE, len(self.text))
        return self.pieces

    def take(self, match: re.Match[str]) -> None:
        token, round_ones, square_ones = match[0], self.open["("], self.open["["]
        if match["escaped"] is not None:
            self.pieces.append(WeightedText(match["escaped"], 1.0))
        elif match["open"]:
            self.open[token].append(len(self.pieces))
            if len(round_ones) + len(square_ones) > MAX_DEPTH:
                problem = f"more than {MAX_DEPTH} brackets are open; \\( and \\[ are characters"
                raise fault(self.text, match.start(), problem)
        elif match["weighted"] and round_ones:
            self.multiply(round_ones.pop(), self.number(match), match.start("number"))
        elif token == ")" and round_ones:
            self.multiply(round_ones.pop(), MORE, match.start())
        elif token == "]" and square_ones:
            self.multiply(square_ones.pop(), 1 / MORE, match.start())
        else:
            self.pieces += with_breaks(token)

    def number(self, match: re.Match[str]) -> float:
        try:
            return float(match["number"])
        except ValueError:
            problem = f"{match['number']} is not a number; a weight is written as in (word:1.3)"
            raise fault(self.text, match.start("number"), problem) from None

    def multiply(self, start: int, factor: float, position: int) -> None:
        """Multiply the weights of the parts from `start` on, whose bracket ends at a position."""
        for number in range(start, len(self.pieces)):
            text, weight, is_break = self.pieces[number]
            if is_break:
                continue
            weight *= factor
            if not abs(weight) <= MAX_WEIGHT:
                problem = f"a weight of {weight:.3g}; at most {MAX_WEIGHT:.0e} is possible"
                raise fault(self.text, position, problem)
            self.pieces[number] = WeightedText(text, weight)


def with_breaks(text: str) -> Iterator[WeightedText]:
    """Yield text without brackets as parts of weight 1, split at breaks, which are stripped."""
    parts = BREAK.split(text)
    for number, part in enumerate(parts):
        if number:
            yield BREAK_PIECE
            part = part.lstrip()
        yield WeightedText(part.rstrip() if number < len(parts) - 1 else part, 1.0)


def joined(pieces: list[WeightedText]) -> list[WeightedText]:
    """Join neighbours of equal weight; return one empty part for an empty list."""
    runs: list[tuple[list[str], WeightedText]] = []
    for piece in pieces:
        if runs and not piece.is_break and runs[-1][1][1:] == piece[1:]:
            runs[-1][0].append(piece.text)
        else:
            runs.append(([piece.text], piece))
    return [piece._replace(text="".join(texts)) for texts, piece in runs] or [WeightedText("", 1.0)]
