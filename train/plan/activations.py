"""What a network's forward and backward pass keep in memory, reckoned from shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

LIVE_TENSORS = 6
"""Of the largest layer's output, without gradients: a ResNet block's input, norm, activation and
convolution, the sum, and room for the convolution to work in."""
FF_WIDTH = 4
"""Width of a transformer block's feed-forward part, in widths of the transformer."""
IN_FLIGHT = 10
"""Tensors of the transformer's width in a block's backward pass: the gradients on both sides of
the feed-forward's activation (2 x 4), of the block's input and of its output."""


@dataclass(frozen=True)
class Learned:
    """What of a video transformer is trained."""

    whole: bool = False
    attention: bool = True
    feed_forward: bool = False


def kept_per_token(learned: Learned, size: int) -> int:
    """Bytes that a block of CogVideoX keeps for its backward pass, per token and unit of width.

    Read off diffusers 0.42.1 `CogVideoXBlock` and torch's autograd formulas: a linear layer keeps
    its input if its weight, or a LoRA beside it, is trained; a norm, attention (its fused kernel)
    and GELU keep their inputs, attention also its output; a product keeps what multiplies
    something that has gradients. In units of the transformer's width:

        norms (two of the stream, queries, keys)  4 of 4 bytes: autocast works them out in fp32
        queries, keys, values, attention's output 4
        GELU's input                              4
        inputs of to_q, to_k, to_v                1, or 3 where autocast casts it for each of them
        input of to_out                           1
        inputs of the feed-forward, if trained    1 + 4
        if the whole block is: the norms' outputs 2 of 4 bytes, what gates multiply 2

    Attention's row sums, the LoRAs' ranks, AdaLN and biases are left out: below 2 % together.

    Args:
        learned: what is trained.
        size: bytes of a number in the arithmetic, 2 or 4.
    """
    is_cast = size < 4
    count = 4 + FF_WIDTH
    if learned.whole or learned.attention:
        count += (3 if is_cast else 1) + 1
    if learned.whole or learned.feed_forward:
        count += 1 + FF_WIDTH
    norms = 4
    if learned.whole:
        norms, count = norms + 2, count + 2
    return 4 * norms + size * count


def transformer_activations(
    config: Any,
    rows: int,
    tokens: int,
    learned: Learned,
    size: int,
    is_checkpointing: bool,
    is_eager: bool = False,
) -> int:
    """Bytes that the video transformer's forward and backward pass take at most.

    Without gradient checkpointing every block keeps what `kept_per_token` says. With it a block
    keeps its input alone, and one block at a time what it keeps otherwise. In both the gradients
    of the block at work come on top. Attention that is spelled out also keeps its scores, tokens x
    tokens for each head: the softmax's in fp32, and its copy in the format of the arithmetic.

    Args:
        config: the transformer's.
        rows: examples of a micro-batch.
        tokens: of a row, prompt included.
        learned: what is trained.
        size: bytes of a number in the arithmetic.
        is_checkpointing: whether activations are computed again.
        is_eager: whether attention is spelled out.
    """
    heads, layers = config.num_attention_heads, config.num_layers
    block = kept_per_token(learned, size) * tokens * heads * config.attention_head_dim
    one = size * tokens * heads * config.attention_head_dim
    if is_eager:
        block += heads * tokens**2 * (4 + size if size < 4 else 4)
    kept = layers * one + block if is_checkpointing else layers * block
    return rows * (kept + IN_FLIGHT * one)


@dataclass
class Traced:
    """Numbers of values, from one pass on the meta device."""

    leaves: int = 0
    """Outputs of all layers, about what a pass with gradients keeps."""
    largest: int = 0
    """The largest output."""
    outlines: int = 0
    """Outputs of the blocks that gradient checkpointing works upon."""
    largest_block: int = 0
    """Outputs of all layers of the largest of these blocks."""

    def kept(self, is_checkpointing: bool) -> int:
        """Values that a pass with gradients keeps."""
        if is_checkpointing and self.outlines:
            return self.outlines + self.largest_block
        return self.leaves


BLOCKS = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "CLIPEncoderLayer",
    "T5Block",
    "CogVideoXResnetBlock3D",
)
"""Classes that gradient checkpointing works upon, in diffusers and transformers."""


def traced(network: nn.Module, run: Callable[[], object]) -> Traced:
    """What the layers of a network on the meta device put out when `run` calls it, in fp32.

    Every layer's output is some other layer's input, and that is what autograd keeps of it; what
    is kept beside them (masks, attention's row sums) is left out.
    """
    found, handles, open_blocks = Traced(), [], [0]

    def leaf(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            count = prod(output.shape)
            found.leaves += count
            found.largest = max(found.largest, count)
            open_blocks[-1] += count

    def begin(module: nn.Module, inputs: object) -> None:
        open_blocks.append(0)

    def end(module: nn.Module, inputs: object, output: Any) -> None:
        inside = open_blocks.pop()
        open_blocks[-1] += inside
        first = output[0] if isinstance(output, tuple) else output
        found.outlines += prod(first.shape)
        found.largest_block = max(found.largest_block, inside)

    for module in network.modules():
        if type(module).__name__ in BLOCKS:
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        elif not any(module.children()):
            handles.append(module.register_forward_hook(leaf))
    try:
        with torch.no_grad(), in_fp32(network):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def in_fp32(network: nn.Module) -> Iterator[None]:
    """A network on the meta device in one number format; afterwards as before."""
    kept = [(one, one.data) for one in (*network.parameters(), *network.buffers())]
    for one, data in kept:
        one.data = data.float() if data.is_floating_point() else data
    try:
        yield
    finally:
        for one, data in kept:
            one.data = data
