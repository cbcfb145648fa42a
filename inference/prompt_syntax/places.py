"""Where in a text something is wrong."""

from __future__ import annotations

from inference.errors import InputError

AROUND = 20
"""Characters shown on either side of a place."""


def place(text: str, position: int) -> str:
    """`character 12, at "…text around it…"`; characters are counted from 1."""
    start, end = max(0, position - AROUND), min(len(text), position + AROUND)
    around = " ".join(text[start:end].split())
    before, after = "…" if start else "", "…" if end < len(text) else ""
    return f"character {position + 1}, at “{before}{around}{after}”"


def fault(text: str, position: int, problem: str) -> InputError:
    """The error to raise for a place (from 0) in a prompt."""
    return InputError(f"prompt, {place(text, position)}: {problem}")
