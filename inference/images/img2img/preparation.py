"""Prepare init image and mask for encoding, and finish the resulting image.

The order of A1111 1.10.1 (`modules/processing.py`, img2img's `init`): masks are inverted, blurred
at their own size, then resized or cropped; images are resized or cropped, then filled.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from inference.images.img2img.masks import (
    ORIGINAL,
    blur_mask,
    invert_mask,
    is_blank,
    masked_pixels,
    whole_picture_overlay_mask,
)
from inference.images.img2img.only_masked import (
    PADDING,
    Box,
    crop_region,
    masked_region,
    overlay_original,
    overlay_region,
)
from inference.images.img2img.resize import (
    JUST_RESIZE,
    LATENT_UPSCALE,
    ImageUpscaler,
    resize_image,
    scale_to,
)
from inference.runtime import InputError

WHOLE_PICTURE, ONLY_MASKED = "Whole picture", "Only masked"
INPAINT_AREAS = (WHOLE_PICTURE, ONLY_MASKED)


@dataclass(frozen=True)
class InpaintOptions:
    """A1111's options of inpainting, with its defaults."""

    invert: bool = False
    """"Mask mode": whether it is "Inpaint not masked"."""
    mask_blur_x: float = 4
    """Pixels of the mask file, 0 … 64."""
    mask_blur_y: float | None = None
    """Defaults to `mask_blur_x`."""
    masked_content: str = ORIGINAL
    inpaint_area: str = WHOLE_PICTURE
    padding: int = PADDING
    """"Only masked padding, pixels", 0 … 256."""


@dataclass(frozen=True)
class Prepared:
    """The input of the VAE, and the images for the overlay."""

    image: Image.Image
    """RGB: to encode, and the reference of color correction. Width x height of the generated image;
    its own
    size under "Just resize (latent upscale)"."""
    mask: Image.Image | None = None
    """Mode "L", in the generated image's size: for `masks.latent_mask` and `mask_tensor`."""
    original: Image.Image | None = None
    """RGB, of the overlay's size; present exactly if there is a mask."""
    overlay_mask: Image.Image | None = None
    box: Box | None = None
    """With "Only masked", the place of the generated image in the original."""
    notes: tuple[str, ...] = ()
    """Messages to the user about differences from the request."""

    def finish(self, result: Image.Image) -> Image.Image:
        """Return the image to save: the result, with the original's unmasked pixels if masked.

        Args:
            result: width x height of the generated image, after the restoration of faces
                and color correction.

        Returns:
            RGB; with "Only masked" in the size of the init image, else in the generated size.
        """
        if self.original is None or self.overlay_mask is None:
            return result
        if self.box is not None:
            return overlay_region(result, self.box, self.original, self.overlay_mask)
        return overlay_original(result, self.original, self.overlay_mask)


def prepare(
    image: Image.Image,
    width: int,
    height: int,
    mask: Image.Image | None = None,
    options: InpaintOptions | None = None,
    resize_mode: str = JUST_RESIZE,
    upscaler: ImageUpscaler | None = None,
) -> Prepared:
    """Prepare img2img or inpainting.

    Args:
        image: RGB, from `opening.open_init_image`.
        width: of the generated image, in pixels.
        height: of the generated image.
        mask: mode "L", from `masks.open_mask`, of the image's size; None in img2img.
        options: of inpainting; by default A1111's.
        resize_mode: one of `resize.RESIZE_MODES`.
        upscaler: for enlarging; by default Lanczos.

    Raises:
        InputError: an option is unknown or out of range, or the mask's size differs.
    """
    if mask is None:
        return Prepared(_resized(image, width, height, resize_mode, upscaler))
    options = options or InpaintOptions()
    if options.inpaint_area not in INPAINT_AREAS:
        raise InputError(
            f"inpaint_area: {options.inpaint_area!r} is not known; take one of "
            f"{', '.join(INPAINT_AREAS)}"
        )
    if mask.size != image.size:
        raise InputError(
            f"mask: its size {mask.width}x{mask.height} differs from the init image's "
            f"{image.width}x{image.height}; give a mask of the same size"
        )
    if options.invert:
        mask = invert_mask(mask)
    mask = blur_mask(mask, options.mask_blur_x, options.mask_blur_y)
    if options.inpaint_area == WHOLE_PICTURE:
        return _whole_picture(image, width, height, mask, options, resize_mode, upscaler)
    box = masked_region(mask, width, height, options.padding)
    if box is None:
        note = "the mask is blank, so there is nothing to cut out: drawn as img2img, without a mask"
        return Prepared(_resized(image, width, height, resize_mode, upscaler), notes=(note,))
    crop = crop_region(image, box, width, height, upscaler)
    crop_mask = crop_region(mask, box, width, height)
    filled = masked_pixels(crop, crop_mask, options.masked_content)
    return Prepared(filled, crop_mask, image, mask, box)


def _whole_picture(
    image: Image.Image,
    width: int,
    height: int,
    mask: Image.Image,
    options: InpaintOptions,
    resize_mode: str,
    upscaler: ImageUpscaler | None,
) -> Prepared:
    resized = _resized(image, width, height, resize_mode, upscaler)
    resized_mask = resize_image(mask, width, height, resize_mode)
    over_image = mask if resize_mode == LATENT_UPSCALE else resized_mask
    return Prepared(
        masked_pixels(resized, over_image, options.masked_content),
        resized_mask,
        scale_to(resized, width, height, upscaler) if resized.size != (width, height) else resized,
        whole_picture_overlay_mask(resized_mask),
        notes=("the mask is blank: the picture stays as it is",) if is_blank(mask) else (),
    )


def _resized(
    image: Image.Image, width: int, height: int, resize_mode: str, upscaler: ImageUpscaler | None
) -> Image.Image:
    """Resize an image; not for "Just resize (latent upscale)", whose latents are resized."""
    if resize_mode == LATENT_UPSCALE:
        return image
    return resize_image(image, width, height, resize_mode, upscaler)
