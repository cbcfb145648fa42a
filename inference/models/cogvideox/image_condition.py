"""The first-frame conditioning of image-to-video models.

Latents are in the transformer's layout, (b, latent frames, c, h, w).
"""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor

from inference.models.clip_model import LatentScale
from inference.runtime import to_device

OFS = 2.0
"""The value of `ofs` (offset) for CogVideoX1.5-5B-I2V, always."""


def image_latents(
    z: Tensor,
    scaling_factor: float,
    invert_scale_latents: bool,
    mode: LatentScale = "pipeline",
) -> Tensor:
    """Return an image's latents on the scale of the transformer's conditioning.

    There are three conventions for CogVideoX 1.5, whose config has `invert_scale_latents`: its
    trainers multiply by the scaling factor, SAT's inference leaves the latents as they are, and
    diffusers divides. For 1.0 all multiply.

    Args:
        z: a sample of the VAE's posterior, of any shape.
        scaling_factor: `vae.config.scaling_factor`.
        invert_scale_latents: `vae.config.invert_scale_latents`.
        mode: `pipeline` as `CogVideoXImageToVideoPipeline.prepare_latents` of diffusers 0.42.1;
            `raw` unchanged; `scaled` multiplied, like the clip's own latents.
    """
    if mode == "raw":
        return z
    if mode == "pipeline" and invert_scale_latents:
        return 1 / scaling_factor * z
    return scaling_factor * z


def place(latents: Tensor, latent_frames: int) -> Tensor:
    """Return the image's latents (b, 1, c, h, w) as latent frame 0, with zeros elsewhere.

    For CogVideoX 1.5 `latent_frames` includes the padding, so that the image is at the very
    front, on a frame that is dropped after generating; so do the pipeline and the trainers.
    """
    batch, _, *rest = latents.shape
    return torch.cat([latents, latents.new_zeros(batch, latent_frames - 1, *rest)], dim=1)


def noise_sigma(generator: torch.Generator, mean: float = -3.0, std: float = 0.5) -> float:
    """Return the strength of an image's noise: exp(N(mean, std^2)), usually 0.05 (appendix D)."""
    return exp(mean + std * torch.randn((), generator=generator).item())


def with_noise(
    pictures: Tensor, generators: Sequence[torch.Generator], mean: float = -3.0, std: float = 0.5
) -> Tensor:
    """Add noise to images (b, 3, h, w) in -1 … 1 as in the training of image-to-video models.

    Each has its own noise strength, as in cogvideox-factory and X-Fun (SAT draws one for the
    batch). Drawn on the CPU from one generator per picture: the strength first. Not clamped.
    """
    noisy = []
    for picture, generator in zip(pictures, generators, strict=True):
        sigma = noise_sigma(generator, mean, std)
        noise = torch.randn(picture.shape, generator=generator)
        noisy.append(picture + sigma * to_device(noise.to(picture.dtype), picture.device))
    return torch.stack(noisy)


def without(condition: Tensor, dropped: Sequence[bool]) -> Tensor:
    """Return the conditioning (b, …) with zeros for the examples without an image.

    The caller decides which: 5 % in SAT (`noised_image_dropout`) and in diffusers' example.
    """
    keep = to_device(torch.tensor([not drop for drop in dropped]), condition.device)
    return torch.where(keep.view(-1, *[1] * (condition.ndim - 1)), condition, 0)


def offset(transformer_config: Any, like: Tensor) -> Tensor | None:
    """Return the transformer's `ofs` input, (1,); None if it has none."""
    return None if transformer_config.ofs_embed_dim is None else like.new_full((1,), OFS)
