"""Shared by all image operations of animations: rounding, subpixel sampling, OpenCV.

Images are RGB (h, w, 3), uint8, or float32 of the same range 0 … 255. Operations return the dtype
of their input: bytes are rounded once at the end, floats not at all, so that a chain of operations
can be computed in floats and rounded once.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inference.runtime import require

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Pixels = Bytes | Floats

Border = Literal["replicate", "wrap", "reflect"]
"""Content beyond the edge: the outermost pixel; the opposite edge; the image mirrored at the
outermost pixel, which is not repeated (OpenCV's BORDER_REFLECT_101)."""


def opencv() -> Any:
    """Import OpenCV.

    Raises:
        InputError: it is not installed.
    """
    return require("cv2", "animations", "OpenCV", "anim")


def to_bytes(values: NDArray[Any]) -> Bytes:
    """Round to the nearest level and clip to 0 … 255."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def alike(values: NDArray[Any], image: Pixels) -> Pixels:
    """Return `values` in the dtype of `image`: rounded bytes, or float32."""
    return to_bytes(values) if image.dtype == np.uint8 else values.astype(np.float32, copy=False)


def blend(first: Pixels, second: Pixels, share: float) -> Pixels:
    """Return `first` · (1 − share) + `second` · share, in the dtype of `first`."""
    return alike(first.astype(np.float32) * (1 - share) + second.astype(np.float32) * share, first)


def composite(inside: Pixels, outside: Pixels, mask: Bytes) -> Pixels:
    """Return `inside` where the mask is 255, `outside` where it is 0, and a blend between.

    Where the mask is 0 or 255 the bytes are unchanged.

    Args:
        inside: (h, w, 3).
        outside: of the same shape; the result has its dtype.
        mask: (h, w).
    """
    share = (mask / np.float32(255))[..., None]
    return alike(outside * (1 - share) + inside * share, outside)


def sample(image: Pixels, x: NDArray[Any], y: NDArray[Any], border: Border) -> Floats:
    """Sample the image at subpixel positions, bilinear and without OpenCV's rounding to 1/32 pixel.

    Args:
        image: (h, w, c).
        x: (h', w'), columns; 0 is the centre of the first.
        y: (h', w'), rows.
        border: content beyond the edge.

    Returns:
        (h', w', c), float32. At integer positions exactly the pixels' values.
    """
    import torch
    from torch.nn import functional as F

    pixels = image.astype(np.float64)
    if border == "wrap":
        x, y = np.mod(x, image.shape[1]), np.mod(y, image.shape[0])
        pixels = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="wrap")
    height, width = pixels.shape[:2]
    scaled = [2 * v / max(n - 1, 1) - 1 for v, n in ((x, width), (y, height))]
    grid = torch.from_numpy(np.stack(scaled, axis=-1).astype(np.float64))
    values = torch.from_numpy(pixels).permute(2, 0, 1)
    padding = "reflection" if border == "reflect" else "border"
    result = F.grid_sample(values[None], grid[None], "bilinear", padding, align_corners=True)
    return result[0].permute(1, 2, 0).contiguous().float().numpy()
