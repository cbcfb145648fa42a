"""The memory that a video model needs while a clip is generated, from shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inference.clips.requests import padded_frames, window_frames
from inference.config import ClipConfig
from inference.memory import MemoryNeeds, swapped_bytes, weight_bytes
from inference.models import ClipModel

TENSORS_PER_TOKEN = 12
"""Tensors of the transformer's width that exist at once in a block: states, queries, keys, values,
and four of the feed-forward part, each with a temporary copy."""
DECODER_TENSORS = 24
"""Tensors of the VAE's last block, as in diffusers' `tiled_decode`."""


def needs_of(
    base: ClipModel, requests: Sequence[ClipConfig], blocks_to_swap: float = 0
) -> MemoryNeeds:
    """Estimate the needs of a model and the largest of its clips from shapes."""
    vae, width = base.vae, base.denoiser_width
    size = torch.finfo(base.dtype).bits // 8
    drawing = decoding = tiled = 0
    for request in requests:
        assert request.frames and request.width and request.height
        factor = base.vae_scale_factor
        window = window_frames(base, request)
        frames = padded_frames(base, request.frames)[0]
        seen = min(window[0], frames) if window else frames
        tokens = base.sequence_tokens(seen, request.height // factor, request.width // factor)
        tokens *= 1 if request.is_unguided else 2
        drawing = max(drawing, TENSORS_PER_TOKEN * tokens * width * size)
        sides = request.height, request.width
        decoding = max(decoding, decoding_bytes(vae, *sides))
        tiles = vae.tile_sample_min_height, vae.tile_sample_min_width
        tiled = max(tiled, decoding_bytes(vae, *map(min, sides, tiles)))
    text_encoders = sum(map(weight_bytes, base.text_encoders.values()))
    denoiser = weight_bytes(base.denoiser) - swapped_bytes(base.blocks(), blocks_to_swap)
    weights = denoiser, text_encoders, weight_bytes(vae)
    return MemoryNeeds(*weights, drawing, decoding, tiled)


def decoding_bytes(vae: Any, height: int, width: int) -> int:
    """Estimate the bytes of decoding one chunk of frames, as in diffusers' `tiled_decode`."""
    chunk = vae.num_sample_frames_batch_size + 1
    numbers = vae.config.block_out_channels[0] * chunk * height * width * DECODER_TENSORS
    return numbers * torch.finfo(vae.dtype).bits // 8
