"""A1111's prompt syntax, as text, without a model. Each module is one part of it.

Their order in A1111 1.10.1 (`modules/processing.py`): styles, extra networks, composition (AND),
editing ([from:to:when]), attention ((a:1.2)).
"""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.prompts.attention import parse_attention
    from inference.prompts.chunks import (
        Chunk,
        LearnedVectors,
        PromptChunker,
        Tokens,
        assemble,
        put_in,
        token_ids,
        tokenize,
    )
    from inference.prompts.composition import split_composition
    from inference.prompts.editing import Entry, chosen, timeline
    from inference.prompts.network_calls import ExtraNetwork, extract_extra_networks
    from inference.prompts.spelling import misread
    from inference.prompts.styles import apply_styles, read_styles

__all__ = [
    "Chunk", "Entry", "ExtraNetwork", "LearnedVectors", "PromptChunker", "Tokens", "apply_styles",
    "assemble", "chosen", "extract_extra_networks", "misread", "parse_attention", "put_in",
    "read_styles", "split_composition", "timeline", "token_ids", "tokenize",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
