"""What prompts read differently than it is written."""

from __future__ import annotations

import re

from inference.prompts.attention import parse_attention
from inference.prompts.composition import split_composition
from inference.prompts.editing import timeline
from inference.prompts.network_calls import extract_extra_networks
from inference.runtime import InputError

SIGNS = re.compile(r"[()\[\]\\|:<]|\bAND\b|\bBREAK\b")
"""What every syntax of prompts contains."""
READINGS = {
    "(": "( and ) set weights",
    ")": "( and ) set weights",
    "[": "[ and ] set weights and switch words",
    "]": "[ and ] set weights and switch words",
    "\\": "\\ makes the next character literal",
    "|": "| switches words at each step",
    ":": "a number after : is a weight",
    "<": "<…:…> calls a network",
    "AND": "AND joins prompts",
    "BREAK": "BREAK begins another chunk",
}


def misread(word: str) -> str | None:
    """Return how prompts read a word or text that they do not take literally; None if they do.

    It is put through the grammar of prompts, within others: it must come back as one text of
    weight 1, and must not change what is around it.
    """
    found = SIGNS.search(word)
    if found is None or _is_literal(word):
        return None
    return READINGS[found[0]]


def _is_literal(word: str) -> bool:
    """Return whether a word comes back from the grammar as it is, at all places of a prompt."""
    try:
        for prompt in (word, f"one {word}", f"one {word} two", f"one {word}, two"):
            text, networks = extract_extra_networks(prompt)
            (part, weight), *others = split_composition(text)
            (piece, *more) = parse_attention(part)
            if networks or others or more or weight != 1 or piece != (prompt, 1.0, False):
                return False
        inner = parse_attention(f"(one {word} two:1.5)") + parse_attention(f"[one {word} two]")
        edited = [entry.text for entry in timeline(f"[one:two:5] {word} three", 10)]
    except InputError:
        return False
    is_weighted = inner == [(f"one {word} two", 1.5, False), (f"one {word} two", 1 / 1.1, False)]
    return is_weighted and edited == [f"one {word} three", f"two {word} three"]
