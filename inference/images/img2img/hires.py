"""Sizes of hires fix (A1111 1.10.1 `modules/processing.py`, `calculate_target_resolution`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference.images.img2img.resize import cover
from inference.runtime import InputError


@dataclass(frozen=True)
class HiresSize:
    """Sizes in pixels; multiples of the base model's size step."""

    width: int
    """The size of the second pass and the image."""
    height: int
    upscale_width: int
    """The size that the first pass is upscaled to; then it is cropped to width and height."""
    upscale_height: int
    left: int = 0
    """Pixels cropped after upscaling; an odd remainder comes off right and bottom."""
    top: int = 0

    def crop_latents(self, latents: Tensor, factor: int) -> Tensor:
        """Crop upscaled latents (b, c, h, w) to the second pass.

        Args:
            latents: of the upscaled size.
            factor: pixels per latent.
        """
        top, left = self.top // factor, self.left // factor
        height, width = self.height // factor, self.width // factor
        return latents[:, :, top : top + height, left : left + width]


def hires_size(
    width: int, height: int, step: int, scale: float = 2.0, resize_x: int = 0, resize_y: int = 0
) -> HiresSize:
    """Return the target of the second pass.

    With neither `resize_x` nor `resize_y` both sides are multiplied by `scale`; with one of them
    the other follows in the first pass's ratio; with both the first pass is upscaled to cover them,
    and its latents are cropped, centred. Sides are rounded down to the step; those that are cropped
    can be up to one step larger than requested, if that is no multiple (A1111 rounds the
    cropped part, not the remaining one).

    Args:
        width: of the first pass, in pixels.
        height: of the first pass.
        step: `base.size_step`; in A1111 always 8.
        scale: "Upscale by", above 0.
        resize_x: "Resize width to"; 0 is unset.
        resize_y: "Resize height to".

    Raises:
        InputError: a number is negative, or a side comes out below one step.
    """
    given = (("hr_scale", scale), ("hr_resize_x", resize_x), ("hr_resize_y", resize_y))
    for key, value in given:
        if value < 0 or (key == "hr_scale" and value == 0):
            raise InputError(f"{key}: {value:g} makes no picture; give a number above 0")
    x, y = _upscaled(width, height, scale, resize_x, resize_y)
    over_x = (x - resize_x) // step if resize_x and resize_y else 0
    over_y = (y - resize_y) // step if resize_x and resize_y else 0
    columns, rows = x // step - over_x, y // step - over_y
    if columns < 1 or rows < 1:
        raise InputError(
            f"hires fix: {width}x{height} would become {x}x{y} pixels, but this base model draws "
            f"no side below {step}; ask for a larger size"
        )
    return HiresSize(
        width=columns * step,
        height=rows * step,
        upscale_width=x // step * step,
        upscale_height=y // step * step,
        left=over_x // 2 * step,
        top=over_y // 2 * step,
    )


def _upscaled(
    width: int, height: int, scale: float, resize_x: int, resize_y: int
) -> tuple[int, int]:
    """Return the size that the first pass is upscaled to, before rounding to the step."""
    if resize_x and resize_y:
        return cover((width, height), (resize_x, resize_y))
    if resize_x:
        return resize_x, resize_x * height // width
    if resize_y:
        return resize_y * width // height, resize_y
    return int(width * scale), int(height * scale)
