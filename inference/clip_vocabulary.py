"""CLIP's byte-pair vocabulary (Radford et al. 2021), for files that bring no tokenizer.

As OpenAI's `simple_tokenizer.py` counts it: 256 bytes, the same at the end of a word, 48,894
merges, and the two marks of start and end: 49,408 ids.
"""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "assets" / "clip" / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Tokens of a prompt's chunk, start and end included."""


def byte_letters() -> list[str]:
    """A visible letter for every byte, in the order of their ids."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(len(hidden))]


@lru_cache(maxsize=1)
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by token, and the merges in their order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [first + second for first, second in merges]
    return {word: number for number, word in enumerate([*words, START, END])}, merges


def clip_tokenizer(pads_with_end: bool = True) -> CLIPTokenizer:
    """The tokenizer of SD 1.x and of SDXL's first text encoder.

    Args:
        pads_with_end: False for OpenCLIP's text encoders (SD 2.x, SDXL's second), which were
            trained with short prompts filled up with id 0, `!`.
    """
    vocabulary, merges = clip_vocabulary()
    return build_tokenizer(vocabulary, merges, START, END, END if pads_with_end else "!")


def build_tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], start: str, end: str, pad: str
) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind; unknown tokens, of which there are none, are its end mark."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=pad,
        model_max_length=LENGTH,
    )


def vocabulary_of(tokenizer: CLIPTokenizer) -> tuple[dict[str, int], list[str]]:
    """Ids by token, and the merges as `first second`, of any tokenizer of CLIP's kind."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokenizer.get_vocab(), merges


def is_clips(tokenizer: CLIPTokenizer) -> bool:
    """Whether it gives CLIP's own ids."""
    return len(tokenizer) == len(clip_vocabulary()[0]) and (
        tokenizer.get_vocab() == clip_vocabulary()[0]
    )
