"""What lies under the mask at the start: "Masked content" (A1111 1.10.1 `modules/masking.py`)."""

from __future__ import annotations

from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from inference.errors import InputError

FILL, ORIGINAL = "fill", "original"
LATENT_NOISE, LATENT_NOTHING = "latent noise", "latent nothing"
MASKED_CONTENT = (FILL, ORIGINAL, LATENT_NOISE, LATENT_NOTHING)

CASCADE = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius of Pillow's Gaussian in pixels, and how many layers of it lie on those before."""


def masked_pixels(image: Image.Image, mask: Image.Image, masked_content: str) -> Image.Image:
    """The picture to encode, RGB.

    As in A1111 all but "original" are filled, since the VAE looks from the kept places under the
    mask; "latent noise" and "latent nothing" then replace the latents (`masked_latents`).

    Raises:
        InputError: `masked_content` is not one of `MASKED_CONTENT`.
    """
    check_masked_content(masked_content)
    return image.convert("RGB") if masked_content == ORIGINAL else fill(image, mask)


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Colours of the surroundings flow under the mask: ever less blurred layers on one another.

    Unmasked pixels stay as they are. If all is masked, there are no surroundings: black.

    Args:
        image: any mode; returned as RGB.
        mask: of mode "L" and the image's size; grey is masked in part.
    """
    surroundings = Image.new("RGBa", image.size)  # colours times alpha, so that blurs do not darken
    kept = image.convert("RGBA").convert("RGBa")
    surroundings.paste(kept, mask=ImageOps.invert(mask))
    layers = Image.new("RGBA", image.size)
    for radius, count in CASCADE:
        layer = surroundings.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(count):
            layers.alpha_composite(layer)
    return layers.convert("RGB")


def masked_latents(
    latents: Tensor, mask: Tensor, masked_content: str, noise: Tensor | None = None
) -> Tensor:
    """The init latents with their masked part replaced, where the masked content says so.

    Args:
        latents: of the init image, (b, c, h, w), as the UNet sees them.
        mask: the latent mask, 1 where painted anew, (1, 1, h, w).
        masked_content: one of `MASKED_CONTENT`.
        noise: standard normal noise of the seeds, (b, c, h, w); "latent noise" needs it. A1111
            takes the same noise here that sampling begins with.

    Raises:
        InputError: `masked_content` is not one of these.
    """
    check_masked_content(masked_content)
    if masked_content == LATENT_NOTHING:
        return latents * (1 - mask)
    if masked_content == LATENT_NOISE:
        if noise is None:
            raise ValueError("latent noise needs the noise of the seeds")
        return latents * (1 - mask) + noise * mask
    return latents


def check_masked_content(masked_content: str) -> None:
    """Raises InputError unless it is one of `MASKED_CONTENT`."""
    if masked_content not in MASKED_CONTENT:
        raise InputError(
            f"masked_content: {masked_content!r} is not known; take one of "
            f"{', '.join(MASKED_CONTENT)}"
        )
