"""Resize modes of init images and masks (A1111 1.10.1 `modules/images.py`, `resize_image`)."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from inference.config import RESIZE_MODES
from inference.runtime import InputError

JUST_RESIZE, CROP_AND_RESIZE, RESIZE_AND_FILL, LATENT_UPSCALE = RESIZE_MODES

LANCZOS = Image.Resampling.LANCZOS

ImageUpscaler = Callable[[Image.Image, float], Image.Image]
"""(image, scale > 1) -> a larger image; Lanczos then resizes it to the exact size."""


def resize_image(
    image: Image.Image,
    width: int,
    height: int,
    resize_mode: str = JUST_RESIZE,
    upscaler: ImageUpscaler | None = None,
) -> Image.Image:
    """Resize an image or mask to width x height pixels, in its own mode.

    "Just resize" stretches; "Crop and resize" covers, centred, and crops the excess; "Resize
    and fill" fits the image in, centred, and stretches its border rows or columns over the rest.
    Under "Just resize (latent upscale)" the init image is encoded unchanged, and its latents are
    stretched by `upscalers.upscale_latents`; masks and other overlays are stretched
    here alike. (A1111 places masks as "Resize and fill" does, beside the stretched latents.)

    Args:
        image: of any mode.
        width: in pixels.
        height: in pixels.
        resize_mode: one of `RESIZE_MODES`.
        upscaler: used if the image becomes larger; never for masks (mode "L").

    Raises:
        InputError: the mode is none of these.
    """
    if resize_mode in (JUST_RESIZE, LATENT_UPSCALE):
        return scale_to(image, width, height, upscaler)
    if resize_mode == CROP_AND_RESIZE:
        scaled = scale_to(image, *cover(image.size, (width, height)), upscaler)
        return _centred(scaled, width, height)
    if resize_mode == RESIZE_AND_FILL:
        scaled = scale_to(image, *contain(image.size, (width, height)), upscaler)
        return _fill_around(scaled, width, height)
    raise InputError(
        f"resize_mode: {resize_mode!r} is not known; take one of {', '.join(RESIZE_MODES)}"
    )


def scale_to(
    image: Image.Image, width: int, height: int, upscaler: ImageUpscaler | None = None
) -> Image.Image:
    """Resize to width x height by Lanczos, after an upscaler if one side at least grows."""
    scale = max(width / image.width, height / image.height)
    if upscaler is not None and scale > 1 and image.mode != "L":
        image = upscaler(image, scale)
    return image.resize((width, height), resample=LANCZOS)


def cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the least (width, height) in the ratio of `size` that covers the target, floored."""
    (w, h), (width, height) = size, target
    return (width, h * width // w) if width * h > w * height else (w * height // h, height)


def contain(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) in the ratio of `size` within the target; rounded down."""
    (w, h), (width, height) = size, target
    if width * h < w * height:
        return width, max(1, h * width // w)
    return max(1, w * height // h), height


def _centred(image: Image.Image, width: int, height: int) -> Image.Image:
    """Paste on width x height, with the same middle (rounded down)."""
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(image, (width // 2 - image.width // 2, height // 2 - image.height // 2))
    return canvas


def _fill_around(image: Image.Image, width: int, height: int) -> Image.Image:
    """Paste `_centred`, and fill the rest from the adjacent border.

    A box without extent makes Pillow sample around the border line itself: A1111's and diffusers'
    border colours. Where A1111 leaves a last row or column black, when what is over is odd, the
    filling reaches to the end.
    """
    canvas = _centred(image, width, height)
    w, h = image.size
    top, left = height // 2 - h // 2, width // 2 - w // 2
    edges = [
        ((w, top), (0, 0, w, 0), (0, 0)),
        ((w, height - top - h), (0, h, w, h), (0, top + h)),
        ((left, h), (0, 0, 0, h), (0, 0)),
        ((width - left - w, h), (w, 0, w, h), (left + w, 0)),
    ]
    for size, box, place in edges:
        if min(size) > 0:
            canvas.paste(image.resize(size, box=box), place)
    return canvas
