"""Contrast and anti-blur (Deforum 3.0 `deforum_helpers/image_sharpening.py`, `render.py`)."""

from __future__ import annotations

import numpy as np

from inference.deforum.geometry import Bytes, Pixels, alike, opencv
from inference.deforum.settings import DEFORUM, FIXED, Compat
from inference.runtime import InputError


def contrast(image: Pixels, factor: float) -> Pixels:
    """Return the image · factor, clipped at 255 (`contrast_schedule`); 1 changes nothing."""
    return alike((image.astype(np.float32) * np.float32(factor)).clip(0, 255), image)


def anti_blur(
    image: Pixels,
    amount: float,
    kernel: int,
    sigma: float,
    threshold: float = 0,
    mask: Bytes | None = None,
    compat: Compat = FIXED,
) -> Pixels:
    """Apply an unsharp mask: (1 + amount) · image − amount · its blur.

    Args:
        image: (h, w, 3).
        amount: 0 changes nothing.
        kernel: side of the Gaussian in pixels (`kernel_schedule`), 1 or more; an even one is
            increased by one, since schedules pass through even numbers.
        sigma: of the Gaussian in pixels; 0 derives it from the kernel.
        threshold: values that differ from the blur by less are unchanged, in levels.
        mask: (h, w); the image is unchanged where it is below 128.
        compat: "deforum-3.0" rounds the blur, and differences below zero wrap around to 255.

    Raises:
        InputError: the kernel is less than 1.
    """
    if kernel < 1:
        raise InputError(
            f"kernel_schedule: {kernel} is not a valid blur size; take 1, 3, 5 … pixels"
        )
    if amount == 0:
        return image.copy()
    size = kernel + (kernel + 1) % 2
    wraps = compat == DEFORUM and image.dtype == np.uint8
    pixels = image if wraps else image.astype(np.float32)
    blurred = opencv().GaussianBlur(pixels, (size, size), sigma)
    values = (1 + amount) * image.astype(np.float64) - amount * blurred.astype(np.float64)
    result = alike(values.clip(0, 255), image)
    if threshold > 0:
        difference = pixels - blurred if wraps else np.abs(pixels - blurred)
        result = np.where(difference < threshold, image, result)
    return result if mask is None else np.where((mask >= 128)[..., None], result, image)
