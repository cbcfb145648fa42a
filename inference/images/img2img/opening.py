"""Init images: from a file to pixels, and back (A1111 1.10.1 `modules/images.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor, ImageOps
from torch import Tensor

from inference.runtime import InputError, check_readable

BACKGROUND = "#ffffff"
"""The default background of transparent areas."""


def read_image(source: str | Path | Image.Image, key: str = "init_image") -> Image.Image:
    """Return an image, fully read and rotated by its EXIF orientation.

    Its mode is kept, except for 16-bit grey, which becomes 8-bit.

    Args:
        source: a file, or an open image.
        key: the recipe's option, for the message.

    Raises:
        InputError: the file does not exist, or is corrupt or not an image.
    """
    if isinstance(source, Image.Image):
        return _in_8_bits(ImageOps.exif_transpose(source))
    path = Path(source)
    check_readable(path, key)
    if not path.is_file():
        raise InputError(f"{key}: there is no file {str(path)!r}; give the path of a picture")
    try:
        with Image.open(path) as image:
            image.load()
            return _in_8_bits(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{key}: {str(path)!r} cannot be read as a picture ({error}); expected a whole PNG, "
            "JPEG or WebP file: save it anew from the program that made it"
        ) from error


def open_init_image(
    source: str | Path | Image.Image, background: str = BACKGROUND, key: str = "init_image"
) -> Image.Image:
    """Return an RGB image, upright, on a background if it is transparent.

    Args:
        source: a file, or an open image.
        background: a colour, such as `#ffffff` or `white`.
        key: the recipe's option, for the message.

    Raises:
        InputError: the file or the colour cannot be used.
    """
    image = read_image(source, key)
    color = background_color(background)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, color)
    below.paste(image, mask=image)
    return below.convert("RGB")


def background_color(text: str, key: str = "background_color") -> tuple[int, ...]:
    """Return red, green and blue of a colour's name.

    Raises:
        InputError: it is not a colour; `key` is the recipe's option.
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise InputError(f"{key}: {text!r} is no colour; write it like '#ffffff'") from error


def picture_size(path: str | Path, key: str = "init_image") -> tuple[int, int]:
    """Return width and height of an image file, rotated upright; its pixels are not read.

    Raises:
        InputError: the file does not exist or is not an image; `key` is the recipe's option.
    """
    check_readable(path, key)
    try:
        with Image.open(path) as image:
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (image.height, image.width) if is_turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_image(path, key).size  # raises the error


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return RGB images of one size as (b, 3, h, w), fp32, in -1 … 1."""
    values = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1


def floor_to_images(pixels: Tensor) -> list[Image.Image]:
    """Return pixels (b, 3, h, w) in -1 … 1 as 8-bit images, rounded down as in A1111.

    A1111 saves these, and passes them to image upscalers between the passes of hires fix. Rounding
    to the nearest, as `inference.images.drawing.to_images` does, is up to one level higher.
    """
    values = ((pixels.float() + 1) / 2).clamp(0, 1).mul(255).floor().to(torch.uint8)
    return [Image.fromarray(one) for one in values.permute(0, 2, 3, 1).cpu().numpy()]


def _in_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.float64) / 257  # 65535 is white
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
