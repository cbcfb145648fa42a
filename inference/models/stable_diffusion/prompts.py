"""From the prompts of pictures to what the UNet is told in each evaluation.

The order is that of A1111 1.10.1 (`modules/prompt_parser.py`, `modules/sd_hijack_clip.py`): parts
joined by AND, texts over the steps, pieces with weights, chunks of tokens, encoders, emphasis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.models.conditions import Conditions, Encoded
from inference.models.stable_diffusion.model import BaseModel
from inference.prompts import (
    Chunk,
    Entry,
    PromptChunker,
    chosen,
    parse_attention,
    split_composition,
    timeline,
)
from inference.runtime import InputError


def emphasise(states: Tensor, weights: Tensor, counts: Tensor, emphasis: str) -> Tensor:
    """One chunk of the texts of one prompt, weighted as in A1111 1.10.1 (`modules/sd_emphasis.py`).

    `Original` multiplies each token's state by its weight, and then all of them by the one number
    that brings their mean back to what it was; the mean goes over all texts together. `No norm`
    leaves that out. In fp32, given back in the states' own format.

    Args:
        states: (texts, tokens, dim).
        weights: (texts, tokens).
        counts: how often each text counts in the mean, (texts,).
        emphasis: one of `EMPHASIS_MODES`; the last two change nothing.
    """
    if emphasis not in ("Original", "No norm") or bool((weights == 1).all()):
        return states
    weighted = states.float() * weights[:, :, None]
    if emphasis == "Original":
        weighted = weighted * (mean(states.float(), counts) / mean(weighted, counts))
    return weighted.to(states.dtype)


def mean(states: Tensor, counts: Tensor) -> Tensor:
    """The mean of states (texts, tokens, dim), each text taken so many times."""
    return torch.sum(states.mean((1, 2)) * counts) / counts.sum()


ENCODED_AT_ONCE = 64
"""Chunks that go through a text encoder in one batch, at most."""


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are read. The words are those of A1111's settings."""

    steps_total: int
    """Evaluations of the model: the steps, or twice as many with samplers of second order."""
    emphasis: str = "Original"
    """One of `EMPHASIS_MODES`."""
    comma_padding_backtrack: int = 20
    """How far back a full chunk may end at a comma, in tokens; 0 for never."""
    old_prompt_editing: bool = False
    """A1111's "Old prompt editing timelines": `[a:b:0.5]` by the rule before 1.6."""
    pad_conds: bool = False
    """Fills the shorter of prompt and negative prompt up with empty chunks, so that both go through
    the UNet together (A1111's "Pad prompt/negative prompt")."""
    hires_base_steps: int | None = None
    """In the second pass of a hires fix, `steps_total` of the first one."""


@dataclass(frozen=True)
class Timeline:
    """What the UNet is told of one text that may change from step to step."""

    ends: tuple[int, ...]
    """The last step of each entry, rising."""
    rows: tuple[int, ...]
    """Where in the conditions each entry is."""
    conditions: Conditions
    """Of the different texts."""

    def row(self, evaluation: int) -> int:
        """The row of the conditions for an evaluation, counted from 0."""
        return self.rows[chosen(self.ends, evaluation)]


@dataclass(frozen=True)
class Part:
    """One of the prompts joined by AND."""

    weight: float
    timeline: Timeline


@dataclass(frozen=True)
class DrawingConditions:
    """What the UNet is told of the prompts of b pictures."""

    positives: list[list[Part]]
    negatives: list[Timeline]
    """One for each picture, or none at all."""
    filler: Conditions | None
    """An empty chunk, where the shorter prompts are to be filled up."""


def mixed(parts: Sequence[Part]) -> list[Part]:
    """The prompts joined by AND as one, whose states are their mean by weight.

    Raises:
        InputError: one of them changes from step to step.
    """
    if len(parts) == 1:
        return [Part(1.0, parts[0].timeline)]
    if any(len(part.timeline.rows) > 1 for part in parts):
        raise InputError("prompts that are mixed by embeddings cannot change from step to step")
    told = [part.timeline.conditions for part in parts]
    longest = max(one.states.shape[1] for one in told)
    total = sum(part.weight for part in parts)
    shares = [part.weight / total for part in parts]
    states = sum(
        share * one.stretched(longest).states for share, one in zip(shares, told, strict=True)
    )
    pooled = [one.pooled for one in told]
    together = (
        sum(share * one for share, one in zip(shares, pooled, strict=True) if one is not None)
        if pooled[0] is not None
        else None
    )
    assert isinstance(states, Tensor) and not isinstance(together, int | float)
    return [Part(1.0, Timeline((0,), (0,), Conditions(states, together)))]


def needs_negatives(prompts: Sequence[str], cfg_scale: float) -> bool:
    """Whether negative prompts have any effect: not at a scale of 1 and with weights of 1."""
    weights = [[part.weight for part in split_composition(prompt)] for prompt in prompts]
    return cfg_scale != 1 or any(each != [1.0] for each in weights)


def as_timelines(conditions: Conditions) -> list[Timeline]:
    """Conditions that hold from the first step to the last, one for each row."""
    return [Timeline((0,), (0,), conditions[n : n + 1]) for n in range(len(conditions.states))]


def encode_drawing_prompts(
    base: BaseModel, prompts: Sequence[str], negatives: Sequence[str], settings: PromptSettings
) -> DrawingConditions:
    """Encodes the prompts of b pictures, each different text once, in the UNet's number format.

    Args:
        base: the base model, with the embeddings that prompts may name.
        prompts: b prompts.
        negatives: b negative prompts, in which AND is a word; or none.
        settings: how they are read.

    Raises:
        InputError: a prompt cannot be read; says where.
    """
    positives = [split_composition(prompt) for prompt in prompts]
    sources = dict.fromkeys([part.text for parts in positives for part in parts])
    sources |= dict.fromkeys(negatives)
    entries = {text: over_steps(text, settings) for text in sources}
    texts = list(dict.fromkeys(entry.text for each in entries.values() for entry in each))
    encoder = _TextEncoder(base, texts, settings)
    timelines = {
        text: encoder.timeline(entries[text])
        for text in dict.fromkeys(part.text for parts in positives for part in parts)
    }
    negative_timelines = {
        text: encoder.timeline(entries[text], is_negative=True) for text in dict.fromkeys(negatives)
    }
    return DrawingConditions(
        [[Part(weight, timelines[text]) for text, weight in parts] for parts in positives],
        [negative_timelines[text] for text in negatives],
        encoder.conditions([[encoder.empty]]) if settings.pad_conds else None,
    )


def over_steps(text: str, settings: PromptSettings) -> list[Entry]:
    """What a text says in each evaluation."""
    steps, base_steps = settings.steps_total, settings.hires_base_steps
    return timeline(text, steps, base_steps, settings.old_prompt_editing)


def read_text(text: str, settings: PromptSettings) -> None:
    """Raises InputError where a text cannot be read in some evaluation; says where."""
    for entry in over_steps(text, settings):
        parse_attention(entry.text, settings.emphasis)


class _TextEncoder:
    """Texts cut into chunks, and what the encoders make of every chunk by itself."""

    def __init__(self, base: BaseModel, texts: Sequence[str], settings: PromptSettings) -> None:
        self.base = base
        self.emphasis = settings.emphasis
        chunker = PromptChunker(base.tokenizer, base.embeddings, settings.comma_padding_backtrack)
        self.rows: dict[str, list[int]] = {}
        chunks: list[Chunk] = []
        for text in texts:
            own = chunker.pieces(parse_attention(text, self.emphasis))
            self.rows[text] = list(range(len(chunks), len(chunks) + len(own)))
            chunks += own
        self.empty = len(chunks)
        """The row of an empty chunk, if any prompt is to be filled up with it."""
        if settings.pad_conds or len({len(rows) for rows in self.rows.values()}) > 1:
            chunks.append(Chunk())
        self.encoded = self.encode(chunks)

    def encode(self, chunks: list[Chunk]) -> list[Encoded]:
        """For each encoder, (chunks, 77, dim)."""
        batches = [
            self.base.encode_chunks([[chunk] for chunk in chunks[start : start + ENCODED_AT_ONCE]])
            for start in range(0, len(chunks), ENCODED_AT_ONCE)
        ]
        return [joined(parts) for parts in zip(*batches, strict=True)]

    def timeline(self, entries: Sequence[Entry], is_negative: bool = False) -> Timeline:
        """The texts of one prompt, brought to equally many chunks.

        In SDXL an empty negative prompt is all zeros, as in A1111 (`modules/sd_models_xl.py`).
        """
        texts = list(dict.fromkeys(entry.text for entry in entries))
        counts = [sum(entry.text == text for entry in entries) for text in texts]
        longest = max(len(self.rows[text]) for text in texts)
        rows = [self.rows[text] for text in texts]
        conditions = self.conditions(
            [each + [self.empty] * (longest - len(each)) for each in rows], counts
        )
        if is_negative and self.base.has_two_text_encoders and not any(texts):
            conditions = conditions.zeroed([True])
        numbers = tuple(texts.index(entry.text) for entry in entries)
        return Timeline(tuple(entry.end_at_step for entry in entries), numbers, conditions)

    def conditions(
        self, rows: Sequence[Sequence[int]], counts: Sequence[int] | None = None
    ) -> Conditions:
        """Of the texts whose chunks' rows these are, (texts, chunks)."""
        index = torch.tensor(rows, device=self.base.device)
        states = [self.weighted(one, index, counts or [1] * len(rows)) for one in self.encoded]
        pooled = self.encoded[-1].pooled if self.base.has_two_text_encoders else None
        together = torch.cat([one.flatten(1, 2) for one in states], dim=-1)
        conditions = Conditions(together, None if pooled is None else pooled[index[:, 0]])
        return conditions.to(self.base.dtype)

    def weighted(self, encoded: Encoded, index: Tensor, counts: Sequence[int]) -> Tensor:
        """States (texts, chunks, 77, dim) of one encoder; each chunk has its own mean."""
        states = encoded.states[index]
        if encoded.weights is None:
            return states
        weights = encoded.weights[index]
        each = torch.tensor(counts, dtype=torch.float32, device=states.device)
        chunks = [
            emphasise(states[:, n], weights[:, n], each, self.emphasis)
            for n in range(states.shape[1])
        ]
        return torch.stack(chunks, dim=1)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Batches of chunks one after the other."""
    if len(parts) == 1:
        return parts[0]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    weights = [
        torch.ones(part.states.shape[:2], device=part.states.device)
        if part.weights is None
        else part.weights
        for part in parts
    ]
    states = torch.cat([part.states for part in parts])
    return Encoded(states, torch.cat(pooled) if pooled else None, torch.cat(weights))
