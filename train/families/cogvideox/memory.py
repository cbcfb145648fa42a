"""The memory that CogVideoX's transformer keeps for training, computed from shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from inference.models import DTYPES
from inference.models.cogvideox import FrameRule, VideoModel, video_tokens
from train.config import LoraConfig, ObjectiveConfig, TrainRecipe

FF_WIDTH = 4
"""Width of a transformer block's feed-forward part, in multiples of the transformer's."""
IN_FLIGHT = 10
"""Tensors of the transformer's width in a block's backward pass: the gradients on both sides of
the feed-forward's activation (2 x 4), of the block's input and of its output."""


@dataclass(frozen=True)
class Learned:
    """The trained parts of a video transformer."""

    whole: bool = False
    attention: bool = True
    feed_forward: bool = False


def kept_per_token(learned: Learned, size: int) -> int:
    """Return the bytes that a block keeps for its backward pass, per token and unit of width.

    From diffusers 0.42.1 `CogVideoXBlock` and torch's autograd formulas: a linear layer keeps
    its input if its weight, or a LoRA beside it, is trained; a norm, attention (its fused kernel)
    and GELU keep their inputs, attention also its output; a product keeps the factor of
    something that has gradients. In units of the transformer's width:

        norms (two of the stream, queries, keys)  4 of 4 bytes: autocast computes them in fp32
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
    """Return the bytes that the video transformer's forward and backward pass use at most.

    Without gradient checkpointing every block keeps `kept_per_token`. With it a block
    keeps its input alone, and one block at a time its other values. In both cases the gradients
    of the current block are added. Explicit attention also keeps its scores, tokens x
    tokens for each head: the softmax's in fp32, and a copy in the dtype of the computation.

    Args:
        config: the transformer's.
        rows: examples of a micro-batch.
        tokens: of a row, prompt included.
        learned: what is trained.
        size: bytes of a number in the computation.
        is_checkpointing: whether activations are recomputed.
        is_eager: whether attention is explicit.
    """
    heads, layers = config.num_attention_heads, config.num_layers
    block = kept_per_token(learned, size) * tokens * heads * config.attention_head_dim
    one = size * tokens * heads * config.attention_head_dim
    if is_eager:
        block += heads * tokens**2 * (4 + size if size < 4 else 4)
    kept = layers * one + block if is_checkpointing else layers * block
    return rows * (kept + IN_FLIGHT * one)


def activation_bytes(
    recipe: TrainRecipe,
    base: VideoModel,
    rows: int,
    shapes: Collection[tuple[int, ...]],
    is_checkpointing: bool,
) -> int:
    """Return a micro-batch's bytes in the transformer; see `FamilyTraining.activation_bytes`."""
    size = DTYPES[recipe.mixed_precision].itemsize
    tokens = max(tokens_of(base, shape) for shape in shapes)
    kind, is_eager = learned(recipe.objective), recipe.base_model.attention == "eager"
    needed = transformer_activations(
        base.config, rows, tokens, kind, size, is_checkpointing, is_eager
    )
    if recipe.data.packs_clips:  # the mask of a row, which diffusers repeats for every head
        needed += base.config.num_attention_heads * (rows * tokens) ** 2 * size
    return needed


def learned(config: ObjectiveConfig) -> Learned:
    """Return the parts of the transformer that an objective trains."""
    if not isinstance(config, LoraConfig):
        return Learned(whole=True)
    targets = config.targets or ["attention"]
    return Learned(attention="attention" in targets, feed_forward="feed_forward" in targets)


def tokens_of(base: VideoModel, shape: tuple[int, ...]) -> int:
    """Return the tokens of a clip (frames, height, width), with prompt and padding."""
    frames = FrameRule.of(base.vae).latent_frames(shape[0])  # video_tokens pads them
    height, width = (side // base.vae_scale_factor for side in shape[1:])
    return video_tokens(frames, height, width, base.config) + base.config.max_text_seq_length
