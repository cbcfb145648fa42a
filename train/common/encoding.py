"""How many images or clips are encoded at once: bounded by their pixels, not by the batch size."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from inference.models import DiffusionModel
from inference.runtime import to_device

PICTURE_PIXELS = 2**20
"""Limit of the pixels of images that are encoded at once: SDXL's VAE takes 2.5 GiB for so many."""
CLIP_PIXELS = 2**22
"""Limit of the pixels of clips, whose VAE works through the frames in groups."""


def encoded_at_once(shape: Sequence[int], count: int) -> int:
    """Return how many of `count` examples are encoded at once; large ones singly.

    Args:
        shape: of an example in pixels: (height, width), of a clip (frames, height, width).
        count: examples of a batch.
    """
    limit = CLIP_PIXELS if len(shape) > 2 else PICTURE_PIXELS
    return max(1, min(count, limit // prod(shape)))


def encode_in_parts(base: DiffusionModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents of pixels (b, 3, …), as many as allowed."""
    size = encoded_at_once(pixels.shape[2:], len(pixels))
    parts = (base.encode_images(to_device(part, base.device)) for part in pixels.split(size))
    means, deviations = zip(*parts, strict=True)
    if len(means) == 1:
        return means[0], deviations[0]
    return torch.cat(means), torch.cat(deviations)
