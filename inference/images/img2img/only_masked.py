"""The inpaint area "Only masked" (A1111 1.10.1 `modules/masking.py`, `get_crop_region_v2`).

The surroundings of the mask are cut out, drawn at full size and put back. Boxes are (left, top,
right, bottom) in pixels, right and bottom not included.
"""

from __future__ import annotations

from PIL import Image

from inference.images.img2img.resize import (
    CROP_AND_RESIZE,
    RESIZE_AND_FILL,
    ImageUpscaler,
    resize_image,
)

Box = tuple[int, int, int, int]

PADDING = 32
"""Pixels of the picture; A1111's default."""


def masked_region(mask: Image.Image, width: int, height: int, padding: int = PADDING) -> Box | None:
    """What to cut out: all that is masked, padded, in the ratio of the drawing where it fits.

    Args:
        mask: of the picture's size, blurred already; every pixel above 0 counts.
        width: of what will be drawn.
        height: of what will be drawn.
        padding: pixels around, as far as the picture reaches.

    Returns:
        The box; None of a blank mask, upon which A1111 1.10 goes on as img2img and says so.
    """
    found = mask.getbbox()
    if found is None:
        return None
    left, top, right, bottom = found
    padded = (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    )
    return expand_region(padded, width, height, *mask.size)


def expand_region(box: Box, width: int, height: int, image_width: int, image_height: int) -> Box:
    """The box made longer along one side to the ratio width : height, within the picture.

    It grows on both ends alike and is shifted inwards at the picture's border. Where the picture
    is too small it ends with the picture, in another ratio.
    """
    left, top, right, bottom = box
    if (right - left) / (bottom - top) > width / height:
        length = (right - left) / (width / height)
        top, bottom = _grow(top, bottom, length, image_height)
    else:
        length = (bottom - top) * (width / height)
        left, right = _grow(left, right, length, image_width)
    return left, top, right, bottom


def crop_region(
    image: Image.Image, box: Box, width: int, height: int, upscaler: ImageUpscaler | None = None
) -> Image.Image:
    """The region of a picture or mask as width x height pixels ("Resize and fill")."""
    return resize_image(image.crop(box), width, height, RESIZE_AND_FILL, upscaler)


def uncrop(result: Image.Image, box: Box, original: Image.Image) -> Image.Image:
    """What was drawn put back into its place in the original ("Crop and resize"), RGB."""
    whole = original.convert("RGB")
    left, top, right, bottom = box
    whole.paste(resize_image(result, right - left, bottom - top, CROP_AND_RESIZE), (left, top))
    return whole


def _grow(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """Start and end `length` apart (rounded down) around the same middle, within 0 … limit."""
    added = int(length - (end - start))
    start, end = start - added // 2, end + added - added // 2
    shift = max(end - limit, 0)
    start, end = start - shift, end - shift
    shift = max(-start, 0)
    return start + shift, min(end + shift, limit)


def overlay_original(result: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The original where the mask is 0, the result where it is 255, RGB.

    Between them the two are mixed in one step, rounded to the nearest; A1111's way over
    premultiplied colours rounds more often, which makes one level of difference in soft edges.

    Args:
        result: what was drawn, of the original's size.
        original: the init image, resized as it was for drawing.
        mask: mode "L", blurred; of a whole picture `masks.whole_picture_overlay_mask` of it.

    Raises:
        ValueError: the sizes differ.
    """
    if not result.size == original.size == mask.size:
        raise ValueError(f"sizes differ: {result.size}, {original.size}, mask {mask.size}")
    return Image.composite(result.convert("RGB"), original.convert("RGB"), mask)


def overlay_region(
    result: Image.Image, box: Box, original: Image.Image, mask: Image.Image
) -> Image.Image:
    """The same for "Only masked": the result is put back into its box first.

    Args:
        result: what was drawn, of any size.
        box: what `only_masked.masked_region` found.
        original: the whole init image.
        mask: mode "L", blurred, of the whole init image.
    """
    return overlay_original(uncrop(result, box, original), original, mask)
