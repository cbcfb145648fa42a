"""Prompts of images over the sampling steps, for any text encoders.

The order is that of A1111 1.10.1 (`modules/prompt_parser.py`): parts joined by AND, texts over the
steps, chunks with weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from inference.models.conditions import Conditions
from inference.prompts import Entry, chosen, parse_attention, split_composition, timeline
from inference.runtime import InputError


@dataclass(frozen=True)
class PromptSettings:
    """Options of reading prompts, in the words of A1111's settings."""

    steps_total: int
    """Evaluations of the model: the steps, or twice as many with samplers of second order."""
    emphasis: str = "Original"
    """One of `EMPHASIS_MODES`."""
    comma_padding_backtrack: int = 20
    """How far back, in tokens, a full chunk may end at a comma; 0 for never."""
    old_prompt_editing: bool = False
    """A1111's "Old prompt editing timelines": `[a:b:0.5]` by the rule before 1.6."""
    pad_conds: bool = False
    """Pad the shorter of prompt and negative prompt with empty chunks, so that both go through
    the UNet together (A1111's "Pad prompt/negative prompt")."""
    hires_base_steps: int | None = None
    """In the second pass of a hires fix, `steps_total` of the first one."""


@dataclass(frozen=True)
class Timeline:
    """Conditioning on one text that may change from step to step."""

    ends: tuple[int, ...]
    """The last step of each entry, rising."""
    rows: tuple[int, ...]
    """Each entry's row of the conditions."""
    conditions: Conditions
    """The conditions of the different texts."""

    def row(self, evaluation: int) -> int:
        """Return the row of the conditions for an evaluation, counted from 0."""
        return self.rows[chosen(self.ends, evaluation)]


@dataclass(frozen=True)
class Part:
    """One of the prompts joined by AND."""

    weight: float
    timeline: Timeline


@dataclass(frozen=True)
class DrawingConditions:
    """Conditioning on the prompts of b images."""

    positives: list[list[Part]]
    negatives: list[Timeline]
    """One for each image, or none at all."""
    filler: Conditions | None
    """An empty chunk, if the shorter prompts are to be padded."""


def mixed(parts: Sequence[Part]) -> list[Part]:
    """Return the prompts joined by AND as one, with the weighted mean of their embeddings.

    Raises:
        InputError: one of them changes from step to step.
    """
    if len(parts) == 1:
        return [Part(1.0, parts[0].timeline)]
    if any(len(part.timeline.rows) > 1 for part in parts):
        raise InputError("prompts that are mixed by embeddings cannot change from step to step")
    conditions = [part.timeline.conditions for part in parts]
    longest = max(one.states.shape[1] for one in conditions)
    total = sum(part.weight for part in parts)
    shares = [part.weight / total for part in parts]
    states = sum(
        share * one.stretched(longest).states for share, one in zip(shares, conditions, strict=True)
    )
    pooled = [one.pooled for one in conditions]
    together = (
        sum(share * one for share, one in zip(shares, pooled, strict=True) if one is not None)
        if pooled[0] is not None
        else None
    )
    assert isinstance(states, Tensor) and not isinstance(together, int | float)
    scores = conditions[0].scores
    return [Part(1.0, Timeline((0,), (0,), Conditions(states, together, scores)))]


def needs_negatives(prompts: Sequence[str], cfg_scale: float) -> bool:
    """Return whether negative prompts have any effect: not at a scale of 1 with weights of 1."""
    weights = [[part.weight for part in split_composition(prompt)] for prompt in prompts]
    return cfg_scale != 1 or any(each != [1.0] for each in weights)


def as_timelines(conditions: Conditions) -> list[Timeline]:
    """Return conditions that apply from the first step to the last, one for each row."""
    return [Timeline((0,), (0,), conditions[n : n + 1]) for n in range(len(conditions.states))]


def over_steps(text: str, settings: PromptSettings) -> list[Entry]:
    """Return the texts and the last evaluation of each."""
    steps, base_steps = settings.steps_total, settings.hires_base_steps
    return timeline(text, steps, base_steps, settings.old_prompt_editing)


def read_text(text: str, settings: PromptSettings) -> None:
    """Check that a text can be read in every evaluation.

    Raises:
        InputError: it cannot; the message has the position.
    """
    for entry in over_steps(text, settings):
        parse_attention(entry.text, settings.emphasis)
