"""Composed prompts: `a cat AND a dog :0.5` (Liu et al. 2022, arXiv 2206.01714)."""

from __future__ import annotations

import re
from typing import NamedTuple

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r":\s*([-+]?(?:\d*\.\d+|\d+\.?))$")


class SubPrompt(NamedTuple):
    """One of the prompts joined by AND, and the factor of its guidance."""

    text: str
    weight: float


def split_composition(prompt: str) -> list[SubPrompt]:
    """Split a prompt at ANDs; parse the `:weight` (default 1) at the end of each part.

    As in A1111 1.10.1 (`modules/prompt_parser.py`): only the uppercase word counts, anywhere, and a
    single prompt can have a weight too: that of `at 10:30` is 30.
    """
    return [weighted(part.rstrip()) for part in AND.split(prompt)]


def weighted(part: str) -> SubPrompt:
    """Split a part into its text and the weight at its end."""
    if match := WEIGHT.search(part):
        return SubPrompt(part[: match.start()].rstrip(), float(match[1]))
    return SubPrompt(part, 1.0)
