"""The picture that an image-to-video model starts from, as it is told of it.

Latents are in the transformer's layout, (b, latent frames, c, h, w).
"""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor

from inference.models.clip_model import LatentScale

OFS = 2.0
"""What CogVideoX1.5-5B-I2V is told as `ofs` (offset), always."""


def image_latents(
    z: Tensor,
    scaling_factor: float,
    invert_scale_latents: bool,
    mode: LatentScale = "pipeline",
) -> Tensor:
    """A picture's latents on the scale that the transformer is told them on.

    Three conventions are about for CogVideoX 1.5, whose config says `invert_scale_latents`: its
    trainers multiply by the scaling factor, SAT's drawing leaves the latents as they are, and
    diffusers divides. For 1.0 all multiply.

    Args:
        z: what the VAE's posterior gave, of any shape.
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
    """The picture's latents (b, 1, c, h, w) as latent frame 0 of so many; zeros elsewhere.

    For CogVideoX 1.5 `latent_frames` counts the padding, so that the picture stands at the very
    front, on a frame that is dropped after drawing; so do the pipeline and the trainers.
    """
    batch, _, *rest = latents.shape
    return torch.cat([latents, latents.new_zeros(batch, latent_frames - 1, *rest)], dim=1)


def noise_sigma(generator: torch.Generator, mean: float = -3.0, std: float = 0.5) -> float:
    """Strength of a picture's noise: exp(N(mean, std^2)), 0.05 as a rule (paper, appendix D)."""
    return exp(mean + std * torch.randn((), generator=generator).item())


def with_noise(
    pictures: Tensor, generators: Sequence[torch.Generator], mean: float = -3.0, std: float = 0.5
) -> Tensor:
    """Pictures (b, 3, h, w) in -1 … 1 as an image-to-video model is trained on them.

    Each has noise of its own strength, as in cogvideox-factory and X-Fun (SAT draws one for the
    batch). Drawn on the CPU from one generator per picture: the strength first. Not clamped.
    """
    noisy = []
    for picture, generator in zip(pictures, generators, strict=True):
        sigma = noise_sigma(generator, mean, std)
        noise = torch.randn(picture.shape, generator=generator)
        noisy.append(picture + sigma * noise.to(picture))
    return torch.stack(noisy)


def without(condition: Tensor, dropped: Sequence[bool]) -> Tensor:
    """The condition (b, …) with zeros for the examples that go without a picture.

    The caller decides which: 5 % in SAT (`noised_image_dropout`) and in diffusers' example.
    """
    keep = torch.tensor([not drop for drop in dropped], device=condition.device)
    return torch.where(keep.view(-1, *[1] * (condition.ndim - 1)), condition, 0)


def offset(transformer_config: Any, like: Tensor) -> Tensor | None:
    """What the transformer is told as `ofs`, (1,); none where it has none."""
    return None if transformer_config.ofs_embed_dim is None else like.new_full((1,), OFS)
