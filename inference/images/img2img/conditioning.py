"""Inpainting models' conditioning, latent masks, and tiling: images that repeat seamlessly.

As A1111 1.10.1 (`modules/sd_hijack.py`, `apply_circular`): every convolution of UNet and VAE wraps
around the border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def inpainting_conditioning(
    pixels: Tensor, mask: Tensor, width: int, height: int, conditioning_mask_strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the mask for the latents, and the image for the caller to encode.

    Args:
        pixels: the encoded init image, (b, 3, h, w) in -1 … 1.
        mask: its `masks.mask_tensor`, (1, 1, any, any), 1 in the repainted area; under "Just resize
            (latent upscale)" its size differs from the pixels'.
        width: of the latents.
        height: of the latents.
        conditioning_mask_strength: "Inpainting conditioning mask strength" (in infotext
            "Conditional mask weight"): 1 replaces the masked part by grey; 0 leaves it visible.

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
    """Return the same without an init image (txt2img): all is masked, and the image is grey.

    Args:
        count: b, images generated at once.
        image_size: (width, height) in pixels.
        latent_size: (width, height) of the latents.

    Returns:
        Ones, (b, 1, height, width); zeros, (b, 3, h, w).
    """
    (image_width, image_height), (width, height) = image_size, latent_size
    return torch.ones(count, 1, height, width), torch.zeros(count, 3, image_height, image_width)


def blend_latents(denoised: Tensor, init_latents: Tensor, mask: Tensor) -> Tensor:
    """Return the denoised prediction where the mask is 1, the init latents where it is 0.

    A1111's samplers over sigmas apply this to the expected clean latents in every step, and once
    more to the final latents; those of the DDIM family to x before the model sees it.

    Args:
        denoised: (b, c, h, w).
        init_latents: (b, c, h, w), or one for all.
        mask: the latent mask, (1, 1, h, w); between 0 and 1 the two are mixed.
    """
    return init_latents * (1 - mask) + denoised * mask


PADDING_MODE, PAD_WIDTHS = "padding_mode", "_reversed_padding_repeated_twice"
CHANGED = (PADDING_MODE, PAD_WIDTHS)


@contextmanager
def circular_padding(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Wrap all convolutions of these modules around; afterwards they are as before.

    Layers injected into the modules count, such as LoRAs of convolutions; those attached later do
    not. Do not use it for several threads with the same modules at once.

    Args:
        modules: the UNet and the VAE. Their images should be at least as large as the widest
            padding.
    """
    before: list[tuple[nn.Conv2d, dict[str, object]]] = []
    try:
        for convolution in _padded_convolutions(modules):
            before.append((convolution, {name: vars(convolution)[name] for name in CHANGED}))
            setattr(convolution, PADDING_MODE, "circular")
            setattr(convolution, PAD_WIDTHS, _pad_widths(convolution))
        yield
    finally:
        for convolution, values in before:
            vars(convolution).update(values)


def _padded_convolutions(modules: Iterable[nn.Module]) -> list[nn.Conv2d]:
    """Return each once, also if it is shared. Those without padding see no border."""
    found: dict[int, nn.Conv2d] = {}
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and any(_pad_widths(part)):
                found[id(part)] = part
    return list(found.values())


def _pad_widths(convolution: nn.Conv2d) -> list[int]:
    """Return left, right, top, bottom, in the order of torch's `pad`.

    Torch computes them when a convolution is created; a padding that was set later (`artifacts.
    low_rank`) needs them computed again.
    """
    if isinstance(convolution.padding, str):  # "same" and "valid" cannot be set later
        return list(vars(convolution)[PAD_WIDTHS])
    vertical, horizontal = convolution.padding
    return [horizontal, horizontal, vertical, vertical]
