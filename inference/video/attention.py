"""Attention of a video transformer spelled out, in place of torch's fused one."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SpelledOut(TorchFunctionMode):
    """Within it `scaled_dot_product_attention` is two products and a softmax.

    On CPUs the backward pass of torch's fused one takes more time than all else in a small
    transformer (measured with torch 2.13: 1.5 s of a step become 0.8 s in bf16).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return spelled_out(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def spelled_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` gives, for what CogVideoX asks of it."""
    assert not is_causal and not dropout_p
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value


class EagerProcessor:
    """A transformer's attention processor with its attention spelled out."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        with SpelledOut():
            return self.processor(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )


def use_eager(transformer: Any) -> None:
    """Spells attention out in every block."""
    processors = transformer.attn_processors
    transformer.set_attn_processor(
        {name: EagerProcessor(processor) for name, processor in processors.items()}
    )
