"""From prompts to tokens, with learned embeddings in the places of their names.

As in A1111 1.10.1 (`modules/sd_hijack_clip.py`): chunks of 75 tokens; where a prompt's tokens spell
the name of an embedding, the longest such name wins, and its vectors take as many places. Vectors
that do not fit into the rest of a chunk begin the next one.

Captions are taken as they stand (`tokenize`); the prompts that are drawn come as pieces with
weights (`PromptChunker.pieces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from inference.prompts.attention import Piece

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
    weights: Tensor | None = None
    """What the states of each token are multiplied by, of the ids' shape, fp32; None is 1."""


@dataclass
class Chunk:
    """At most 75 tokens of a prompt, without start, end and filler."""

    ids: list[int] = field(default_factory=list)
    """The places of an embedding hold the id 0 until its vectors take them."""
    weights: list[float] = field(default_factory=list)
    found: list[tuple[int, str]] = field(default_factory=list)
    """Embeddings: where in `ids` they begin, and their names."""


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
    chunker = PromptChunker(tokenizer, embeddings)
    return assemble(tokenizer, [chunker.whole(prompt) for prompt in prompts], filler)


class PromptChunker:
    """Cuts prompts into chunks.

    Args:
        tokenizer: the base model's.
        embeddings: whose vectors take the places of their names.
        comma_padding_backtrack: where a chunk is full and its last comma at most so many tokens
            back, what follows the comma begins the next chunk; 0 switches that off.
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
        """The chunks of a prompt as it stands."""
        return self.pieces([Piece(prompt, 1.0)])

    def pieces(self, pieces: Sequence[Piece]) -> list[Chunk]:
        """The chunks of `parse_attention`'s pieces, at least one.

        Each piece is tokenised by itself. A break begins a new chunk, however empty the last is.
        """
        chunks = _Chunks(self.tokenizer.model_max_length - 2, self.backtrack)
        for piece in pieces:
            if piece.is_break:
                chunks.begin()
            else:
                self.put(piece, chunks)
        return chunks.finished()

    def put(self, piece: Piece, chunks: _Chunks) -> None:
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
    """The tokens that spell each name, the longest first."""
    names = [(token_ids(tokenizer, name), name) for name in embeddings]
    return sorted(names, key=lambda entry: -len(entry[0]))


def spelled_at(
    ids: Sequence[int], position: int, names: Sequence[tuple[list[int], str]]
) -> tuple[int, str] | None:
    """The name that tokens spell from a position on, and how many they are."""
    for tokens, name in names:
        if list(ids[position : position + len(tokens)]) == tokens:
            return len(tokens), name
    return None


class _Chunks:
    """Puts tokens into chunks of at most `room`.

    Where tokens behind a comma move on, embeddings among them move along (A1111 leaves their
    vectors behind, in the filler).
    """

    def __init__(self, room: int, comma_padding_backtrack: int) -> None:
        self.room = room
        self.backtrack = comma_padding_backtrack
        self.chunks = [Chunk()]
        self.last_comma: int | None = None

    def add(
        self, ids: list[int], weight: float, name: str | None = None, is_comma: bool = False
    ) -> None:
        """One token, or the places of the embedding named."""
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
        """Where the last comma is, unless it is too far back."""
        is_near = self.last_comma is not None and filled - self.last_comma <= self.backtrack
        return self.last_comma if is_near else None

    def begin(self) -> None:
        """A new chunk."""
        self.chunks.append(Chunk())
        self.last_comma = None

    def move_on(self, start: int) -> None:
        """Takes what the last chunk holds from `start` on into a new one."""
        old = self.chunks[-1]
        moved = [(place - start, name) for place, name in old.found if place >= start]
        self.begin()
        self.chunks[-1] = Chunk(old.ids[start:], old.weights[start:], moved)
        del old.ids[start:], old.weights[start:]
        old.found = [(place, name) for place, name in old.found if place < start]

    def finished(self) -> list[Chunk]:
        """The chunks; an empty last one only where it is the only one."""
        if len(self.chunks) > 1 and not self.chunks[-1].ids:
            self.chunks.pop()
        return self.chunks


def assemble(
    tokenizer: CLIPTokenizer, prompts: Sequence[Sequence[Chunk]], filler: int | None = None
) -> Tokens:
    """The chunks of several prompts, with start, end and filler, as many for each."""
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
            places += [Place(row, number, 1 + place, name) for place, name in chunk.found]
    return Tokens(ids, places, None if bool((weights == 1).all()) else weights)


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
