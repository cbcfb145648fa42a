"""Masks of inpainting (A1111 1.10.1 `modules/processing.py`, `create_binary_mask` and `init`).

A mask is a picture of mode "L": 255 where it is painted anew, 0 where the original stays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import correlate1d
from torch import Tensor

from inference.errors import InputError
from inference.img2img.opening import read_image

MOST_BLUR = 64
"""Pixels, as far as A1111's slider goes."""


def open_mask(source: str | Path | Image.Image, soft: bool = False) -> Image.Image:
    """A mask from a file ("Inpaint upload") or a drawn layer, of mode "L".

    Of a picture with transparent places the alpha counts: above 128 is 255, the rest 0. Any other
    picture counts by its brightness.

    Args:
        source: a file, or a picture that is open already.
        soft: whether alpha stays as it is.

    Raises:
        InputError: there is no such file, or it is broken or no picture.
    """
    image = read_image(source, "mask")
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha if soft else alpha.point([0] * 129 + [255] * 127)
    return image.convert("L")


def sketch_mask(sketch: Image.Image, original: Image.Image, mask_alpha: float = 0) -> Image.Image:
    """The mask of "Inpaint sketch": all pixels in which the sketch differs from the original.

    Args:
        sketch: the original with strokes on it.
        original: of the same size.
        mask_alpha: "Mask transparency" in percent, 0 … 100; takes that share off the mask. From 50
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
    """The init image of "Inpaint sketch", RGB: the blurred sketch within the blurred mask.

    Args:
        sketch: the original with strokes on it.
        original: of the same size.
        mask: what `sketch_mask` gives, not blurred yet.
        mask_blur: radius of Pillow's Gaussian in pixels, for both.

    Raises:
        InputError: the sizes differ.
    """
    _check_sizes(sketch, original)
    blur = ImageFilter.GaussianBlur(mask_blur)
    strokes = sketch.convert("RGB").filter(blur)
    return Image.composite(strokes, original.convert("RGB"), mask.filter(blur))


def invert_mask(mask: Image.Image) -> Image.Image:
    """What "Inpaint not masked" paints anew: all but the mask."""
    return ImageOps.invert(mask)


def is_blank(mask: Image.Image) -> bool:
    """Whether nothing is masked; then A1111 1.10 goes on as img2img without a mask, and says so."""
    return mask.getbbox() is None


def gaussian_kernel(blur: float) -> np.ndarray:
    """OpenCV's Gaussian of sigma `blur` for 8 bits, in 256ths (`smooth.dispatch.cpp`, 4.x).

    (2 int(2.5 blur + 0.5) + 1,), int64, symmetric, sum 256: each weight is rounded with what the
    weights before it lost, up to the middle, which takes what remains.
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
    """Softens edges ("Mask blur"): a Gaussian along x, rounded to 8 bits, then one along y.

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
    """For laying the original over a whole picture, A1111 doubles the blurred mask.

    So the result shows fully wherever the latent mask, rounded, was 1. With "Only masked" the
    blurred mask is taken as it is.
    """
    return mask.point([min(255, 2 * value) for value in range(256)])


def mask_tensor(mask: Image.Image, soft: bool = False) -> Tensor:
    """A mask as (1, 1, h, w), fp32: 0 or 1, or all that is between if it is soft."""
    values = torch.from_numpy(np.asarray(mask.convert("L")).astype(np.float32) / 255)[None, None]
    return values if soft else values.round()


def latent_mask(mask: Image.Image, width: int, height: int, soft: bool = False) -> Tensor:
    """A mask for latents of width x height: (1, 1, height, width), fp32, 1 where painted anew.

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
