"""Prompt conditioning: text-encoder outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference.prompts import LearnedVectors, Tokens, put_in
from inference.runtime import to_device


@dataclass(frozen=True)
class Conditions:
    """The conditioning of the UNet on b prompts.

    Indexing by a slice or by numbers of rows gives the conditioning on some of the prompts.
    """

    states: Tensor
    """Prompt embeddings for attention, (b, tokens, dim); in SDXL both encoders' side by side."""
    pooled: Tensor | None = None
    """SDXL: the second encoder's pooled embedding of each prompt, (b, dim)."""
    scores: Tensor | None = None
    """SDXL's refiner: the aesthetic score to draw for each prompt, (b,), fp32."""

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Conditions:
        chosen = rows if isinstance(rows, slice | Tensor) else list(rows)
        pooled = None if self.pooled is None else self.pooled[chosen]
        scores = None if self.scores is None else self.scores[chosen]
        return Conditions(self.states[chosen], pooled, scores)

    def to(self, target: torch.dtype | torch.device | str) -> Conditions:
        """Return them in another dtype, or on another device; scores stay as they are."""
        pooled = None if self.pooled is None else self.pooled.to(target)
        return Conditions(self.states.to(target), pooled, self.scores)

    def zeroed(self, rows: Sequence[bool]) -> Conditions:
        """Return them with zeros for some of the prompts."""
        gone = to_device(torch.tensor(rows), self.states.device)
        pooled = None if self.pooled is None else self.pooled.masked_fill(gone[:, None], 0)
        return Conditions(self.states.masked_fill(gone[:, None, None], 0), pooled, self.scores)

    def stretched(self, tokens: int) -> Conditions:
        """Return them padded with the last token to a length, as A1111 pads prompts in an AND."""
        missing = tokens - self.states.shape[1]
        if not missing:
            return self
        last = self.states[:, -1:].expand(-1, missing, -1)
        return Conditions(torch.cat([self.states, last], dim=1), self.pooled, self.scores)

    def filled_up(self, tokens: int, filler: Conditions) -> Conditions:
        """Return them padded to a length by repeating an empty chunk's embeddings (1, 77, dim)."""
        missing = tokens - self.states.shape[1]
        if not missing:
            return self
        times = missing // filler.states.shape[1]
        chunks = filler.states.repeat(len(self.states), times, 1)
        return Conditions(torch.cat([self.states, chunks], dim=1), self.pooled, self.scores)

    @staticmethod
    def cat(several: Sequence[Conditions]) -> Conditions:
        """Return the concatenation; all of one base model and of equally many tokens."""
        pooled = [one.pooled for one in several if one.pooled is not None]
        scores = [one.scores for one in several if one.scores is not None]
        states = torch.cat([one.states for one in several])
        return Conditions(
            states, torch.cat(pooled) if pooled else None, torch.cat(scores) if scores else None
        )


@dataclass(frozen=True)
class Encoded:
    """The output of one text encoder for prompts."""

    states: Tensor
    """(b, chunks x 77, dim); `encode` returns them before the last layer norm."""
    pooled: Tensor | None
    """Projection of the first chunk's end token, (b, dim); only of encoders with a projection."""
    weights: Tensor | None = None
    """The pending weights of the embeddings, (b, chunks x 77), fp32; None is 1."""


def encode(
    text_encoder: Any,
    tokens: Tokens,
    layer: int,
    embeddings: dict[str, LearnedVectors],
    number: int = 0,
) -> Encoded:
    """Run a text encoder on every chunk of every prompt.

    Args:
        text_encoder: transformers' CLIPTextModel or CLIPTextModelWithProjection.
        tokens: of this encoder's own tokenizer.
        layer: the layer whose output is used: -1 is the last layer, -2 the one before.
        embeddings: learned vectors and their token positions.
        number: the encoder's index in the base model, from 0.
    """
    batch, chunks, length = tokens.ids.shape
    table: nn.Module = text_encoder.get_input_embeddings()
    ids = to_device(tokens.ids, next(text_encoder.parameters()).device).view(-1, length)
    with put_in(table, tokens, embeddings, number):
        output = text_encoder(ids, output_hidden_states=True)
    states = output.hidden_states[layer].reshape(batch, chunks * length, -1)
    pooled = output.get("text_embeds")
    pooled = None if pooled is None else pooled.view(batch, chunks, -1)[:, 0]
    weights = None if tokens.weights is None else to_device(tokens.weights, states.device)
    weights = None if weights is None else weights.view(batch, -1)
    return Encoded(states, pooled, weights)


def final_layer_norm(text_encoder: Any) -> nn.Module:
    """Return the norm after a text encoder's last layer, in any version of transformers."""
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm


def whole_picture(height: int, width: int) -> Tensor:
    """Return SDXL's size conditioning (6,) of an uncropped image.

    Podell et al. 2023 (arXiv 2307.01952, section 2.2), in the order of the reference: the file's
    height and width, the crop's top and left, the image's height and width.
    """
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
