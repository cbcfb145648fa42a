"""The original's own pixels over what was drawn (A1111's setting "overlay_inpaint", on).

The VAE changes every pixel a little. Laying the original over the result by the mask undoes that
where nothing was to change: bytes under a mask of 0 are the original's.
"""

from __future__ import annotations

from PIL import Image

from inference.img2img.only_masked import Box, uncrop


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
