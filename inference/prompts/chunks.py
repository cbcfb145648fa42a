"""Tokenize prompts, and put learned embeddings in the positions of their names.

As in A1111 1.10.1 (`modules/sd_hijack_clip.py`): chunks of 75 tokens; where a prompt's tokens spell
the name of an embedding, the longest such name wins, and its vectors take as many positions.
Vectors that do not fit into the rest of a chunk start the next one.

Captions are tokenized literally (`tokenize`); prompts for generation come as weighted parts
(`PromptChunker.pieces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from inference.prompts.attention import WeightedText

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
        """Return the vectors for each text encoder."""
        return [self.vectors] if self.vectors_2 is None else [self.vectors, self.vectors_2]

    def forward(self, number: int = 0) -> Tensor:
        """Return the vectors for a text encoder (numbered from 0), as they are put into prompts."""
        vectors = self.by_encoder()[number]
        return vectors if self.strength == 1 else vectors * self.strength


class EmbeddingPosition(NamedTuple):
    """Where an embedding's vectors begin."""

    prompt: int
    chunk: int
    position: int
    name: str


@dataclass(frozen=True)
class Tokens:
    """Token ids (b, chunks, 77 or the model's length), and the positions of embeddings in them."""

    ids: Tensor
    places: list[EmbeddingPosition]
    weights: Tensor | None = None
    """Factors of the embeddings of each token, with the shape of the ids, fp32; None means 1."""


@dataclass
class Chunk:
    """At most 75 tokens of a prompt, without start, end and padding."""

    ids: list[int] = field(default_factory=list)
    """Token ids; positions of an embedding hold 0 until its vectors replace them."""
    weights: list[float] = field(default_factory=list)
    found: list[tuple[int, str]] = field(default_factory=list)
    """The embeddings: their first index in `ids`, and their names."""


def token_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Return the ids of a text alone, without start and end."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def tokenize(
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    embeddings: Mapping[str, LearnedVectors],
    filler: int | None = None,
) -> Tokens:
    """Tokenize prompts into chunks with start and end tokens; pad with empty chunks.

    `filler` is the padding id after an end token, instead of the tokenizer's own.
    """
    chunker = PromptChunker(tokenizer, embeddings)
    return assemble(tokenizer, [chunker.whole(prompt) for prompt in prompts], filler)


class PromptChunker:
    """Splits prompts into chunks.

    Args:
        tokenizer: the base model's.
        embeddings: vectors that replace their names.
        comma_padding_backtrack: if a chunk is full and its last comma is at most this many tokens
            back, the text after the comma starts the next chunk; 0 switches that off.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        embeddings: Mapping[str, LearnedVectors],
        comma_padding_backtrack: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.embeddings = embeddings
        self.backtrack = comma_padding_backtrack
        self.names = spellings(tokenizer, embeddings)
        comma = tokenizer.convert_tokens_to_ids(",</w>")
        self.comma = None if comma == tokenizer.unk_token_id else comma

    def whole(self, prompt: str) -> list[Chunk]:
        """Return the chunks of a literal prompt."""
        return self.pieces([WeightedText(prompt, 1.0)])

    def pieces(self, pieces: Sequence[WeightedText]) -> list[Chunk]:
        """Return the chunks of the parts of `parse_attention`, at least one.

        Each part is tokenized separately. A break starts a new chunk, even if the last one is
        empty.
        """
        chunks = _Chunks(self.tokenizer.model_max_length - 2, self.backtrack)
        for piece in pieces:
            if piece.is_break:
                chunks.begin()
            else:
                self.put(piece, chunks)
        return chunks.finished()

    def put(self, piece: WeightedText, chunks: _Chunks) -> None:
        ids = token_ids(self.tokenizer, piece.text)
        position = 0
        while position < len(ids):
            spelled = spelled_at(ids, position, self.names)
            if spelled is None:
                token = ids[position]
                chunks.add([token], piece.weight, is_comma=token == self.comma)
                position += 1
            else:
                length, name = spelled
                chunks.add([0] * len(self.embeddings[name].vectors), piece.weight, name)
                position += length


def spellings(
    tokenizer: CLIPTokenizer, embeddings: Mapping[str, LearnedVectors]
) -> list[tuple[list[int], str]]:
    """Return the tokens that spell each name, the longest first."""
    names = [(token_ids(tokenizer, name), name) for name in embeddings]
    return sorted(names, key=lambda entry: -len(entry[0]))


def spelled_at(
    ids: Sequence[int], position: int, names: Sequence[tuple[list[int], str]]
) -> tuple[int, str] | None:
    """Return how many tokens from a position on spell a name, and the name; None if none do."""
    for tokens, name in names:
        if list(ids[position : position + len(tokens)]) == tokens:
            return len(tokens), name
    return None


class _Chunks:
    """Collects tokens in chunks of at most `room`.

    When the tokens after a comma move to the next chunk, embeddings among them move too (A1111
    leaves their vectors behind, in the padding).
    """

    def __init__(self, room: int, comma_padding_backtrack: int) -> None:
        self.room = room
        self.backtrack = comma_padding_backtrack
        self.chunks = [Chunk()]
        self.last_comma: int | None = None

    def add(
        self, ids: list[int], weight: float, name: str | None = None, is_comma: bool = False
    ) -> None:
        """Add one token, or the positions of the named embedding."""
        filled = len(self.chunks[-1].ids)
        if is_comma:
            self.last_comma = filled
        elif filled == self.room and (comma := self.near_comma(filled)) is not None:
            self.move_on(comma + 1)
        if len(self.chunks[-1].ids) + len(ids) > self.room:
            self.begin()
        chunk = self.chunks[-1]
        if name is not None:
            chunk.found.append((len(chunk.ids), name))
        chunk.ids += ids
        chunk.weights += [weight] * len(ids)

    def near_comma(self, filled: int) -> int | None:
        """Return the position of the last comma; None if it is too far back."""
        is_near = self.last_comma is not None and filled - self.last_comma <= self.backtrack
        return self.last_comma if is_near else None

    def begin(self) -> None:
        """Start a new chunk."""
        self.chunks.append(Chunk())
        self.last_comma = None

    def move_on(self, start: int) -> None:
        """Move the content of the last chunk from `start` on to a new one."""
        old = self.chunks[-1]
        moved = [(place - start, name) for place, name in old.found if place >= start]
        self.begin()
        self.chunks[-1] = Chunk(old.ids[start:], old.weights[start:], moved)
        del old.ids[start:], old.weights[start:]
        old.found = [(place, name) for place, name in old.found if place < start]

    def finished(self) -> list[Chunk]:
        """Return the chunks, without an empty last one unless it is the only one."""
        if len(self.chunks) > 1 and not self.chunks[-1].ids:
            self.chunks.pop()
        return self.chunks


def assemble(
    tokenizer: CLIPTokenizer, prompts: Sequence[Sequence[Chunk]], filler: int | None = None
) -> Tokens:
    """Return the chunks of several prompts, with start, end and padding, as many for each."""
    filler = int(tokenizer.pad_token_id) if filler is None else filler
    num_chunks = max([1, *(len(chunks) for chunks in prompts)])
    ids = torch.full((len(prompts), num_chunks, tokenizer.model_max_length), filler)
    ids[:, :, 0], ids[:, :, 1] = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    weights = torch.ones(ids.shape)
    places = []
    for row, chunks in enumerate(prompts):
        for number, chunk in enumerate(chunks):
            tokens = torch.tensor([*chunk.ids, int(tokenizer.eos_token_id)])
            ids[row, number, 1 : 1 + len(tokens)] = tokens
            weights[row, number, 1 : len(tokens)] = torch.tensor(chunk.weights)
            places += [
                EmbeddingPosition(row, number, 1 + place, name) for place, name in chunk.found
            ]
    is_plain = all(one == 1 for chunks in prompts for chunk in chunks for one in chunk.weights)
    return Tokens(ids, places, None if is_plain else weights)


@contextmanager
def put_in(
    table: nn.Module, tokens: Tokens, embeddings: Mapping[str, LearnedVectors], number: int = 0
) -> Iterator[None]:
    """Replace embeddings' positions in the output of a text encoder's token table by their vectors.

    `number` is the number of the text encoder in the base model.
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
