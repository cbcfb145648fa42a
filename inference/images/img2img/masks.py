"""Masks of inpainting (A1111 1.10.1 `modules/processing.py`, `create_binary_mask` and `init`).

A mask is an image of mode "L": 255 where it is repainted, 0 where the original stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.linalg import vector_norm

from inference.images.img2img.opening import read_image
from inference.runtime import InputError

FILL, ORIGINAL = "fill", "original"
LATENT_NOISE, LATENT_NOTHING = "latent noise", "latent nothing"
MASKED_CONTENT = (FILL, ORIGINAL, LATENT_NOISE, LATENT_NOTHING)

CASCADE = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius of Pillow's Gaussian in pixels, and how many layers of it lie on the previous ones."""


def masked_pixels(image: Image.Image, mask: Image.Image, masked_content: str) -> Image.Image:
    """Return the image to encode, RGB.

    As in A1111 all but "original" are filled, since the VAE looks across the mask's
    border; "latent noise" and "latent nothing" then replace the latents (`masked_latents`).

    Raises:
        InputError: `masked_content` is not one of `MASKED_CONTENT`.
    """
    check_masked_content(masked_content)
    return image.convert("RGB") if masked_content == ORIGINAL else fill(image, mask)


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Fill the mask with the surrounding colours: less and less blurred layers on one another.

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
    """Return the init latents with the masked part replaced, if the masked content requires it.

    Args:
        latents: the init image's, (b, c, h, w), as the UNet sees them.
        mask: the latent mask, 1 in the repainted area, (1, 1, h, w).
        masked_content: one of `MASKED_CONTENT`.
        noise: standard normal noise of the seeds, (b, c, h, w); "latent noise" needs it. A1111
            uses the same noise here as at the start of sampling.

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
    """Raise InputError unless it is one of `MASKED_CONTENT`."""
    if masked_content not in MASKED_CONTENT:
        raise InputError(
            f"masked_content: {masked_content!r} is not known; take one of "
            f"{', '.join(MASKED_CONTENT)}"
        )


MOST_BLUR = 64
"""Pixels, the range of A1111's slider."""


def open_mask(source: str | Path | Image.Image, soft: bool = False) -> Image.Image:
    """Open a mask from a file ("Inpaint upload") or a drawn layer, of mode "L".

    In an image with transparency the alpha counts: above 128 is 255, the rest 0. In any other
    image the brightness counts.

    Args:
        source: a file, or an open image.
        soft: whether alpha is kept.

    Raises:
        InputError: the file does not exist, or is corrupt or not an image.
    """
    image = read_image(source, "mask")
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha if soft else alpha.point([0] * 129 + [255] * 127)
    return image.convert("L")


def sketch_mask(sketch: Image.Image, original: Image.Image, mask_alpha: float = 0) -> Image.Image:
    """Return the mask of "Inpaint sketch": all pixels that differ from the original.

    Args:
        sketch: the original with strokes on it.
        original: of the same size.
        mask_alpha: "Mask transparency" in percent, 0 … 100; reduces the mask by that share. From 50
            on the mask is rounded to nothing, unless inpainting is soft.

    Raises:
        InputError: the sizes differ.
    """
    _check_sizes(sketch, original)
    differs = np.asarray(sketch.convert("RGBA")) != np.asarray(original.convert("RGBA"))
    mask = Image.fromarray(np.where(differs.any(axis=-1), 255, 0).astype(np.uint8))
    return ImageEnhance.Brightness(mask).enhance(1 - mask_alpha / 100)


def sketch_init_image(
    sketch: Image.Image, original: Image.Image, mask: Image.Image, mask_blur: float = 4
) -> Image.Image:
    """Return the init image of "Inpaint sketch", RGB: the blurred sketch in the blurred mask.

    Args:
        sketch: the original with strokes on it.
        original: of the same size.
        mask: from `sketch_mask`, not blurred yet.
        mask_blur: radius of Pillow's Gaussian in pixels, for both.

    Raises:
        InputError: the sizes differ.
    """
    _check_sizes(sketch, original)
    blur = ImageFilter.GaussianBlur(mask_blur)
    strokes = sketch.convert("RGB").filter(blur)
    return Image.composite(strokes, original.convert("RGB"), mask.filter(blur))


def invert_mask(mask: Image.Image) -> Image.Image:
    """Return the mask of "Inpaint not masked": all but the mask."""
    return ImageOps.invert(mask)


def is_blank(mask: Image.Image) -> bool:
    """Return whether nothing is masked; A1111 1.10 then warns and runs img2img without a mask."""
    return mask.getbbox() is None


def gaussian_kernel(blur: float) -> np.ndarray:
    """Return OpenCV's 8-bit Gaussian of sigma `blur`, in 256ths (`smooth.dispatch.cpp`, 4.x).

    (2 int(2.5 blur + 0.5) + 1,), int64, symmetric, sum 256: each weight is rounded with the
    previous rounding errors, up to the middle, which takes the remainder.
    """
    radius = int(2.5 * blur + 0.5)
    if radius == 0:
        return np.array([256])
    tail = np.exp(-(np.arange(radius, 0, -1) ** 2) / (2 * blur**2))
    weights = []
    lost = 0.0
    for exact in tail * (1 / (2 * tail.sum() + 1)) * 256:
        weights.append(round(exact + lost))
        lost += exact - weights[-1]
    return np.array([*weights, 256 - 2 * sum(weights), *weights[::-1]])


def blur_mask(mask: Image.Image, blur_x: float = 4, blur_y: float | None = None) -> Image.Image:
    """Soften edges ("Mask blur"): a Gaussian along x, rounded to 8 bits, then one along y.

    The same bytes as cv2.GaussianBlur with kernels (k, 1) and (1, k): borders reflect without
    repeating the outermost pixel.

    Args:
        mask: of mode "L".
        blur_x: sigma in pixels, 0 … 64; 0 blurs nothing.
        blur_y: sigma along y; `blur_x` without it.

    Raises:
        InputError: a sigma out of range.
    """
    sigmas = blur_x, blur_x if blur_y is None else blur_y
    values = np.asarray(mask).astype(np.int64)
    for axis, sigma in zip((1, 0), sigmas, strict=True):
        if not 0 <= sigma <= MOST_BLUR:
            raise InputError(f"mask_blur: {sigma:g} is out of range; take 0 to {MOST_BLUR} pixels")
        if sigma:
            summed = correlate1d(values, gaussian_kernel(sigma), axis, mode="mirror")
            values = (np.asarray(summed, dtype=np.int64) + 128) >> 8
    return Image.fromarray(values.astype(np.uint8))


def whole_picture_overlay_mask(mask: Image.Image) -> Image.Image:
    """Return the mask for overlaying a whole original: A1111 doubles the blurred mask.

    So the result is fully visible wherever the latent mask, rounded, was 1. With "Only masked"
    the blurred mask is used unchanged.
    """
    return mask.point([min(255, 2 * value) for value in range(256)])


def mask_tensor(mask: Image.Image, soft: bool = False) -> Tensor:
    """Return a mask as (1, 1, h, w), fp32: 0 or 1, or any value between if it is soft."""
    values = torch.from_numpy(np.asarray(mask.convert("L")).astype(np.float32) / 255)[None, None]
    return values if soft else values.round()


def latent_mask(mask: Image.Image, width: int, height: int, soft: bool = False) -> Tensor:
    """Return a mask for latents: (1, 1, height, width), fp32, 1 in the repainted area.

    Resized bicubically on its 8 bits, then rounded to 0 or 1 unless it is soft (soft inpainting).
    """
    small = mask.convert("L").resize((width, height), resample=Image.Resampling.BICUBIC)
    return mask_tensor(small, soft)


def _check_sizes(sketch: Image.Image, original: Image.Image) -> None:
    if sketch.size != original.size:
        sizes = [f"{image.width}x{image.height}" for image in (sketch, original)]
        raise InputError(
            f"sketch: its size {sizes[0]} differs from the original's {sizes[1]}; draw on the "
            "original without resizing it"
        )


@dataclass(frozen=True)
class SoftInpainting:
    """The extension's options and defaults."""

    mask_blend_power: float = 1.0
    """"Schedule bias", 0 … 8: how strongly the mask depends on sigma."""
    mask_blend_scale: float = 0.5
    """"Preservation strength", 0 … 8: larger keeps more of the original."""
    inpaint_detail_preservation: float = 4.0
    """"Transition contrast boost", 1 … 32: larger keeps the contrast of the stronger side."""

    def mask_at(self, mask: Tensor, sigma: float) -> Tensor:
        """Return the soft latent mask (0 … 1, any shape) at a sigma above 0.

        mask ** (sigma ** power * scale): 0 and 1 stay; values between are low while there is much
        noise, and near 1 at the end.
        """
        return mask ** (sigma**self.mask_blend_power * self.mask_blend_scale)

    def blend(self, denoised: Tensor, init_latents: Tensor, mask: Tensor, sigma: float) -> Tensor:
        """Replace `latents.blend_latents` in every step but not on the final latents.

        Mixes the vectors over the channels linearly, and then gives them a length between the two,
        since the mean of two different latents is shorter than either: images would become grey.

        Args:
            denoised: the expected clean latents, (b, c, h, w).
            init_latents: (b, c, h, w), or one for all.
            mask: the soft latent mask, (1, 1, h, w), 1 in the repainted area.
            sigma: of this step, above 0.

        Returns:
            (b, c, h, w) in the dtype of `denoised`.
        """
        share = self.mask_at(mask, sigma).double()
        old, new = init_latents.double(), denoised.double()
        mixed = old * (1 - share) + new * share
        power = self.inpaint_detail_preservation
        wanted = (_length(old) ** power * (1 - share) + _length(new) ** power * share) ** (
            1 / power
        )
        return (mixed * (wanted / (_length(mixed) + 1e-5))).to(denoised.dtype)


def _length(latents: Tensor) -> Tensor:
    """Return the length over the channels, (b, 1, h, w)."""
    return vector_norm(latents, dim=1, keepdim=True)
