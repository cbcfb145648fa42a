"""The inpaint area "Only masked" (A1111 1.10.1 `modules/masking.py`, `get_crop_region_v2`).

The surroundings of the mask are cropped, generated at full size and pasted. Boxes are (left, top,
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
"""Pixels of the image; A1111's default."""


def masked_region(mask: Image.Image, width: int, height: int, padding: int = PADDING) -> Box | None:
    """Return the crop: all that is masked, padded, in the generated image's ratio if it fits.

    Args:
        mask: of the image's size, already blurred; every pixel above 0 counts.
        width: of the generated image.
        height: of the generated image.
        padding: pixels around, within the image.

    Returns:
        The box; None for a blank mask, with which A1111 1.10 runs img2img and warns.
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
    """Extend the box along one side to the ratio width : height, within the image.

    It grows on both ends alike and is shifted inwards at the image's border. If the image
    is too small, the box ends with the image, in another ratio.
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
    """Return the region of an image or mask as width x height pixels ("Resize and fill")."""
    return resize_image(image.crop(box), width, height, RESIZE_AND_FILL, upscaler)


def uncrop(result: Image.Image, box: Box, original: Image.Image) -> Image.Image:
    """Paste the generated region into its place in the original ("Crop and resize"), RGB."""
    whole = original.convert("RGB")
    left, top, right, bottom = box
    whole.paste(resize_image(result, right - left, bottom - top, CROP_AND_RESIZE), (left, top))
    return whole


def _grow(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """Return start and end `length` apart (rounded down) around the same middle, in 0 … limit."""
    added = int(length - (end - start))
    start, end = start - added // 2, end + added - added // 2
    shift = max(end - limit, 0)
    start, end = start - shift, end - shift
    shift = max(-start, 0)
    return start + shift, min(end + shift, limit)


def overlay_original(result: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the original where the mask is 0, the result where it is 255, RGB.

    In between the two are mixed in one step, rounded to the nearest; A1111's computation with
    premultiplied colours rounds more often, which makes one level of difference in soft edges.

    Args:
        result: the generated image, of the original's size.
        original: the init image, resized as for generating.
        mask: mode "L", blurred; for a whole image its `masks.whole_picture_overlay_mask`.

    Raises:
        ValueError: the sizes differ.
    """
    if not result.size == original.size == mask.size:
        raise ValueError(f"sizes differ: {result.size}, {original.size}, mask {mask.size}")
    return Image.composite(result.convert("RGB"), original.convert("RGB"), mask)


def overlay_region(
    result: Image.Image, box: Box, original: Image.Image, mask: Image.Image
) -> Image.Image:
    """Do the same for "Only masked": the result is pasted into its box first.

    Args:
        result: the generated image, of any size.
        box: from `only_masked.masked_region`.
        original: the whole init image.
        mask: mode "L", blurred, of the whole init image.
    """
    return overlay_original(uncrop(result, box, original), original, mask)
