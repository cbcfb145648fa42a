"""Prompts that change while sampling: `[from:to:when]` and `[a|b]`.

Grammar and meaning are those of A1111 1.10.1 (`modules/prompt_parser.py`), parsed here in one pass.
A1111's grammar is ambiguous for `[a:b:3]` directly followed by an unmatched bracket or colon
(`[a:b:3]]`), and its result differs from start to start; here it is always an edit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

TOKENS = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]")
NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
PARTNERS = {"(": ")", "[": "]"}


class Edit(NamedTuple):
    """`[from:to:when]`: `before` in steps up to `when`, counted from 1; `after` in later steps."""

    before: Node
    after: Node
    when: int


class Alternation(NamedTuple):
    """`[a|b]`: the options in turn, one per step."""

    options: Sequence[Node]


Node: TypeAlias = "str | list[Node] | Edit | Alternation"


class Entry(NamedTuple):
    """A text of the prompt, and the last step (from 1) that uses it."""

    end_at_step: int
    text: str


def timeline(
    prompt: str, steps: int, hires_base_steps: int | None = None, old_rule: bool = False
) -> list[Entry]:
    r"""Return the texts of a prompt over the steps, in order; at least one.

    Edits: `[from:to:when]`, `[to:when]` (from nothing), `[from::when]` (to nothing), and `[a|b|c]`.
    A `when` with a decimal point is a fraction of the steps, any other one a step number. A syntax
    error (a lone `|`, a backslash at the end) makes the whole prompt literal. Backslashes are kept
    for the attention syntax.

    Args:
        prompt: the prompt, or a part of it; brackets without an edit are kept.
        steps: number of model evaluations of this pass.
        hires_base_steps: in the second pass of a hires fix, the evaluations of the first one:
            step numbers continue from them, and fractions from 1.0.
        old_rule: "Old prompt editing timelines": numbers below 1 are fractions, all others steps,
            and a hires pass repeats the timeline of the first one.
    """
    if old_rule and hires_base_steps is not None:
        steps = hires_base_steps
    is_offset = hires_base_steps is not None and not old_rule
    offset = hires_base_steps if hires_base_steps is not None and is_offset else 0
    changes = {steps}

    def when(number: str) -> int:
        value = float(number)
        if old_rule:
            value = value * steps if value < 1 else value
        elif "." in number:
            value = (value - is_offset) * steps
        else:
            value -= offset
        step = int(max(-1.0, min(float(steps), value)))
        if step >= 1:
            changes.add(step)
        return step

    tree = _Parser(when).parse(prompt)
    if tree is None:
        return [Entry(steps, prompt)]
    if any(isinstance(node, Alternation) for node in tree.constructs):
        changes |= set(range(1, steps + 1))
    return [Entry(step, text_at(tree.nodes, step)) for step in sorted(changes)]


def chosen(ends: Sequence[int], evaluation: int) -> int:
    """Return the index of the entry for a model evaluation, counted from 0.

    It is the first entry whose end is not below the number (A1111 compares steps counted from 1
    with evaluations counted from 0, so the first text gets one evaluation more than its share).
    After the last end it stays the last entry.
    """
    return next((n for n, end in enumerate(ends) if evaluation <= end), len(ends) - 1)


def text_at(nodes: list[Node], step: int) -> str:
    """Return the text of a step, counted from 1."""
    texts: list[str] = []
    waiting: list[Node] = [nodes]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, Edit):
            waiting.append(node.before if step <= node.when else node.after)
        elif isinstance(node, Alternation):
            waiting.append(node.options[(step - 1) % len(node.options)])
        else:
            waiting += reversed(node)
    return "".join(texts)


class _Tree(NamedTuple):
    nodes: list[Node]
    constructs: list[Edit | Alternation]


class _Frame:
    """An unclosed bracket: the content between its separators so far."""

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.separators = ""
        self.parts: list[list[Node]] = [[]]


class _Parser:
    """Parses a prompt from left to right, with the unclosed brackets on a stack.

    What is not an edit, an alternation or a pair of brackets is text, and then so are all unclosed
    brackets around it: an edit contains nothing unbalanced.
    """

    def __init__(self, when: Callable[[str], int]) -> None:
        self.when = when
        self.nodes: list[Node] = []
        self.frames: list[_Frame] = []
        self.constructs: list[Edit | Alternation] = []

    def parse(self, prompt: str) -> _Tree | None:
        """Return the tree of a prompt; None if the whole prompt is literal."""
        position = 0
        for match in TOKENS.finditer(prompt):
            if match.start() != position or not self.take(match[0]):
                return None
            position = match.end()
        if position != len(prompt) or not self.loosen():
            return None
        return _Tree(self.nodes, self.constructs)

    @property
    def current(self) -> list[Node]:
        return self.frames[-1].parts[-1] if self.frames else self.nodes

    def take(self, token: str) -> bool:
        """Parse a token; return False if the prompt is literal."""
        if token in PARTNERS:
            self.frames.append(_Frame(token))
        elif token in PARTNERS.values():
            node = self.close(token)
            if node is None:
                is_readable = self.loosen()
                self.nodes.append(token)
                return is_readable
            self.frames.pop()
            self.current.append(node)
        elif token in (":", "|"):
            if not self.frames:
                self.nodes.append(token)
                return token == ":"
            self.frames[-1].separators += token
            self.frames[-1].parts.append([])
        else:
            self.current.append(token)
        return True

    def close(self, token: str) -> Node | None:
        """Return the node that the innermost bracket becomes; None if it becomes no node."""
        if not self.frames or PARTNERS[self.frames[-1].bracket] != token:
            return None
        frame = self.frames[-1]
        parts, kinds = frame.parts, set(frame.separators)
        if not kinds or (token == ")" and frame.separators == ":"):
            return [frame.bracket, *between(parts, ":"), token]
        if token == "]" and kinds == {"|"}:
            return self.noted(Alternation(parts))
        if token == "]" and frame.separators in (":", "::") and (number := as_number(parts[-1])):
            before: Node = parts[0] if len(parts) == 3 else ""
            return self.noted(Edit(before, parts[-2], self.when(number)))
        return None

    def noted(self, construct: Edit | Alternation) -> Node:
        self.constructs.append(construct)
        return construct

    def loosen(self) -> bool:
        """Turn the unclosed brackets into text; return False if one contains a `|`."""
        frames, self.frames = self.frames, []
        for frame in frames:
            if "|" in frame.separators:
                return False
            self.nodes += [frame.bracket, *between(frame.parts, ":")]
        return True


def between(parts: list[list[Node]], separator: str) -> list[Node]:
    """Join the parts with a separator between them."""
    nodes: list[Node] = [parts[0]]
    for part in parts[1:]:
        nodes += [separator, part]
    return nodes


def as_number(part: list[Node]) -> str:
    """Return the number that a part consists of; empty if it is something else."""
    text = part[0] if len(part) == 1 and isinstance(part[0], str) else ""
    match = NUMBER.fullmatch(text)
    return match[1] if match else ""
