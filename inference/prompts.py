"""From prompts to tokens, with learned embeddings in the places of their names.

As in A1111 1.10.1 (`modules/sd_hijack_clip.py`): chunks of 75 tokens; where a prompt's tokens spell
the name of an embedding, the longest such name wins, and its vectors take as many places. Vectors
that do not fit into the rest of a chunk begin the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class LearnedVectors(nn.Module):
    """Vectors (n, width) that stand for a name in prompts; n more for a second text encoder."""

    def __init__(self, vectors: Tensor, vectors_2: Tensor | None = None) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors, requires_grad=False)
        self.vectors_2 = None if vectors_2 is None else nn.Parameter(vectors_2, requires_grad=False)
        self.strength = 1.0

    def by_encoder(self) -> list[nn.Parameter]:
        """The vectors for each text encoder."""
        return [self.vectors] if self.vectors_2 is None else [self.vectors, self.vectors_2]

    def forward(self, number: int = 0) -> Tensor:
        """The vectors for a text encoder, counted from 0, as they are put into prompts."""
        vectors = self.by_encoder()[number]
        return vectors if self.strength == 1 else vectors * self.strength


class Place(NamedTuple):
    """Where an embedding's vectors begin."""

    prompt: int
    chunk: int
    position: int
    name: str


@dataclass(frozen=True)
class Tokens:
    """Token ids (b, chunks, 77 or the model's length), and where embeddings stand in them."""

    ids: Tensor
    places: list[Place]


def token_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """The ids of a text alone, without start and end."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def tokenize(
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    embeddings: Mapping[str, LearnedVectors],
    filler: int | None = None,
) -> Tokens:
    """Every chunk has its own start and end token; shorter prompts are filled with empty chunks.

    `filler` is the id behind an end token, in the place of the tokenizer's own.
    """
    length = tokenizer.model_max_length
    names = spellings(tokenizer, embeddings)
    texts = [
        split(token_ids(tokenizer, prompt), names, embeddings, length - 2) for prompt in prompts
    ]
    num_chunks = max(1, *(len(chunks) for chunks, _ in texts))
    filler = int(tokenizer.pad_token_id) if filler is None else filler
    ids = torch.full((len(texts), num_chunks, length), filler)
    ids[:, :, 0], ids[:, :, 1] = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    places = []
    for row, (chunks, found) in enumerate(texts):
        for number, chunk in enumerate(chunks):
            tokens = torch.tensor([*chunk, int(tokenizer.eos_token_id)])
            ids[row, number, 1 : 1 + len(tokens)] = tokens
        places += [Place(row, chunk, position, name) for chunk, position, name in found]
    return Tokens(ids, places)


def spellings(
    tokenizer: CLIPTokenizer, embeddings: Mapping[str, LearnedVectors]
) -> list[tuple[list[int], str]]:
    """The tokens that spell each name, the longest first."""
    names = [(token_ids(tokenizer, name), name) for name in embeddings]
    return sorted(names, key=lambda entry: -len(entry[0]))


def split(
    ids: Sequence[int],
    names: Sequence[tuple[list[int], str]],
    embeddings: Mapping[str, LearnedVectors],
    room: int,
) -> tuple[list[list[int]], list[tuple[int, int, str]]]:
    """Chunks of at most `room` tokens, and (chunk, position after the start, name) of embeddings.

    A place of an embedding holds the id 0 until its vectors take it.
    """
    chunks: list[list[int]] = [[]]
    found: list[tuple[int, int, str]] = []
    position = 0
    while position < len(ids):
        spelled = next(
            ((len(t), n) for t, n in names if list(ids[position : position + len(t)]) == t), None
        )
        needed = len(embeddings[spelled[1]].vectors) if spelled else 1
        if len(chunks[-1]) + needed > room:
            chunks.append([])
        if spelled:
            found.append((len(chunks) - 1, len(chunks[-1]) + 1, spelled[1]))
            chunks[-1] += [0] * needed
            position += spelled[0]
        else:
            chunks[-1].append(ids[position])
            position += 1
    return chunks, found


@contextmanager
def put_in(
    table: nn.Module, tokens: Tokens, embeddings: Mapping[str, LearnedVectors], number: int = 0
) -> Iterator[None]:
    """Has a text encoder's token table answer with the embeddings' vectors in their places.

    `number` says which of the base model's encoders it is.
    """
    if not tokens.places:
        yield
        return
    num_chunks = tokens.ids.shape[1]

    def replace(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = output.clone()
        for prompt, chunk, position, name in tokens.places:
            vectors = embeddings[name](number)
            end = position + len(vectors)
            output[prompt * num_chunks + chunk, position:end] = vectors.to(output)
        return output

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
