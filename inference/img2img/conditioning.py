"""What inpainting checkpoints are told (UNets with 4 + 1 + 4 input channels).

A1111 1.10.1 (`modules/processing.py`, `inpainting_image_conditioning`): beside the noisy latents
the UNet sees the mask, and the latents of the picture with its masked part blanked out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def inpainting_conditioning(
    pixels: Tensor, mask: Tensor, width: int, height: int, conditioning_mask_strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The mask for the latents, and the picture that the caller encodes.

    Args:
        pixels: the init image as it is encoded, (b, 3, h, w) in -1 … 1.
        mask: `masks.mask_tensor` of it, (1, 1, any, any), 1 where painted anew; under "Just resize
            (latent upscale)" its size is another than the pixels'.
        width: of the latents.
        height: of the latents.
        conditioning_mask_strength: "Inpainting conditioning mask strength" (in infotext
            "Conditional mask weight"): 1 blanks the masked part out, to grey; 0 leaves it visible.

    Returns:
        The mask, (b, 1, height, width), by nearest neighbours; pixels, (b, 3, h, w) in -1 … 1. The
        UNet's input is cat([noisy latents, mask, latents of these pixels], dim=1).
    """
    over_pixels = F.interpolate(mask, size=pixels.shape[2:])
    blanked = torch.lerp(pixels, pixels * (1 - over_pixels), conditioning_mask_strength)
    small = F.interpolate(mask, size=(height, width))
    return small.expand(len(pixels), -1, -1, -1), blanked


def whole_picture_conditioning(
    count: int, image_size: tuple[int, int], latent_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The same where there is no init image (txt2img): all is masked, and the picture is grey.

    Args:
        count: b, pictures drawn at once.
        image_size: (width, height) in pixels.
        latent_size: (width, height) of the latents.

    Returns:
        Ones, (b, 1, height, width); zeros, (b, 3, h, w).
    """
    (image_width, image_height), (width, height) = image_size, latent_size
    return torch.ones(count, 1, height, width), torch.zeros(count, 3, image_height, image_width)
