"""Prompts of images as conditioning of the UNet: token chunks, text encoders, emphasis.

As in A1111 1.10.1 (`modules/sd_hijack_clip.py`, `modules/sd_emphasis.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.models.conditions import Conditions, Encoded
from inference.models.drawing_prompts import (
    DrawingConditions,
    Part,
    PromptSettings,
    Timeline,
    over_steps,
)
from inference.prompts import (
    Chunk,
    Entry,
    LearnedVectors,
    PromptChunker,
    parse_attention,
    split_composition,
)


class ChunkEncoder(Protocol):
    """The part of a base model's interface that encodes prompts in chunks."""

    tokenizer: Any
    embeddings: dict[str, LearnedVectors]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device: ...

    @property
    def has_pooled_prompts(self) -> bool: ...

    @property
    def aesthetic_scores(self) -> tuple[float, float] | None: ...

    def encode_chunks(self, chunks: Sequence[Sequence[Chunk]]) -> list[Encoded]: ...


def emphasise(states: Tensor, weights: Tensor, counts: Tensor, emphasis: str) -> Tensor:
    """Weight one chunk of each text of a prompt as in A1111 1.10.1 (`modules/sd_emphasis.py`).

    `Original` multiplies each token's embedding by its weight, and then all by the one number
    that restores their mean; the mean goes over all texts together. `No norm`
    omits that. Computed in fp32, returned in the dtype of the embeddings.

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
    """Return the mean of embeddings (texts, tokens, dim), each text with its count."""
    return torch.sum(states.mean((1, 2)) * counts) / counts.sum()


ENCODED_AT_ONCE = 64
"""Chunks that go through a text encoder in one batch, at most."""


def encode_drawing_prompts(
    base: ChunkEncoder, prompts: Sequence[str], negatives: Sequence[str], settings: PromptSettings
) -> DrawingConditions:
    """Encode the prompts of b images, each different text once, in the UNet's dtype.

    Args:
        base: the base model, with the embeddings that prompts may name.
        prompts: b prompts.
        negatives: b negative prompts, in which AND is a word; or none.
        settings: how they are read.

    Raises:
        InputError: a prompt cannot be read; the message has the position.
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


class _TextEncoder:
    """Texts split into chunks, and the text encoders' output for every chunk by itself."""

    def __init__(self, base: ChunkEncoder, texts: Sequence[str], settings: PromptSettings) -> None:
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
        """The row of an empty chunk, if any prompt is to be padded with it."""
        if settings.pad_conds or len({len(rows) for rows in self.rows.values()}) > 1:
            chunks.append(Chunk())
        self.encoded = self.encode(chunks)

    def encode(self, chunks: list[Chunk]) -> list[Encoded]:
        """Return (chunks, 77, dim) for each encoder."""
        batches = [
            self.base.encode_chunks([[chunk] for chunk in chunks[start : start + ENCODED_AT_ONCE]])
            for start in range(0, len(chunks), ENCODED_AT_ONCE)
        ]
        return [joined(parts) for parts in zip(*batches, strict=True)]

    def timeline(self, entries: Sequence[Entry], is_negative: bool = False) -> Timeline:
        """Return the texts of one prompt, padded to equally many chunks.

        In SDXL an empty negative prompt is all zeros, as in A1111 (`modules/sd_models_xl.py`).
        For its refiner, prompts and negative prompts ask for different aesthetic scores.
        """
        texts = list(dict.fromkeys(entry.text for entry in entries))
        counts = [sum(entry.text == text for entry in entries) for text in texts]
        longest = max(len(self.rows[text]) for text in texts)
        rows = [self.rows[text] for text in texts]
        conditions = self.conditions(
            [each + [self.empty] * (longest - len(each)) for each in rows], counts
        )
        if is_negative and self.base.has_pooled_prompts and not any(texts):
            conditions = conditions.zeroed([True])
        if (scores := self.base.aesthetic_scores) is not None:
            like = conditions.states.new_empty(len(texts), dtype=torch.float32)
            conditions = replace(conditions, scores=like.fill_(scores[is_negative]))
        numbers = tuple(texts.index(entry.text) for entry in entries)
        return Timeline(tuple(entry.end_at_step for entry in entries), numbers, conditions)

    def conditions(
        self, rows: Sequence[Sequence[int]], counts: Sequence[int] | None = None
    ) -> Conditions:
        """Return the conditions of the texts with these chunk rows, (texts, chunks)."""
        index = torch.tensor(rows, device=self.base.device)
        states = [self.weighted(one, index, counts or [1] * len(rows)) for one in self.encoded]
        pooled = self.encoded[-1].pooled if self.base.has_pooled_prompts else None
        together = torch.cat([one.flatten(1, 2) for one in states], dim=-1)
        conditions = Conditions(together, None if pooled is None else pooled[index[:, 0]])
        return conditions.to(self.base.dtype)

    def weighted(self, encoded: Encoded, index: Tensor, counts: Sequence[int]) -> Tensor:
        """Return one encoder's weighted embeddings (texts, chunks, 77, dim), by chunk."""
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
    """Return batches of chunks, concatenated."""
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
