"""Rotary positions (placeholder until merged)."""

from functools import cache
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid


def rotary_positions(
    config: Any,
    latent_height: int,
    latent_width: int,
    latent_frames: int,
    device: Any,
    kind: str = "pipeline",
) -> Any:
    if not config.use_rotary_positional_embeddings:
        return None
    cos, sin = _made(
        config.attention_head_dim,
        latent_height // config.patch_size,
        latent_width // config.patch_size,
        latent_frames,
        config.sample_height // config.patch_size,
        config.sample_width // config.patch_size,
    )
    return cos.to(device), sin.to(device)


@cache
def _made(dim: int, gh: int, gw: int, frames: int, bh: int, bw: int) -> Any:
    region = get_resize_crop_region_for_grid((gh, gw), bw, bh)
    return get_3d_rotary_pos_embed(dim, region, (gh, gw), frames, device=torch.device("cpu"))
