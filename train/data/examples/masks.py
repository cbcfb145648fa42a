"""Masks: cropped with their image, scaled to the size of latents, converted to loss weights.

Weights and areas follow OneTrainer's `modules/util/loss/masked_loss.py`, the formula of opacity
A1111 1.10.1's `modules/textual_inversion/dataset.py`.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from inference.recipe import RecipeWarning
from train.common import DataError
from train.config import MaskConfig
from train.data.containers import open_file
from train.data.examples.transforms import Crop
from train.data.pictures import READING_ERRORS
from train.data.sources import Picture

DEEP = ("I;16", "I;16L", "I;16B")
"""Pillow's modes for 16 bits of grey."""
TOLERANCE = 0.02
"""Fraction by which the aspect ratio of a mask may differ from its image's, for rounding."""


def mask_shares(picture: Picture, crop: Crop, config: MaskConfig, factor: int) -> Tensor:
    """Return the mask at the size of latents, (1, h / factor, w / factor) in 0 … 1.

    It is averaged over the pixels of each latent; see `mask_pixels`.

    Args:
        picture: the image of the mask.
        crop: the crop of the image.
        config: where masks come from.
        factor: pixels per latent along each side.

    Raises:
        DataError: the mask cannot be read, or has another aspect ratio than the image.
    """
    height, width = crop.pixels.shape[1:]
    places = mask_pixels(picture, crop, config)
    return places.view(height // factor, factor, width // factor, factor).mean((1, 3))[None]


def mask_pixels(picture: Picture, crop: Crop, config: MaskConfig) -> Tensor:
    """Return the mask of a crop, (1, h, w) in 0 … 1: scaled, cropped and mirrored like the image.

    An image without a mask is 1 everywhere.

    Raises:
        DataError: the mask cannot be read, or has another aspect ratio than the image.
    """
    mask = crop.alpha if config.source == "alpha" else None
    if picture.mask is not None:
        mask = read_mask(picture.mask)
        check_shape(mask, picture, crop)
    if mask is None:
        return torch.ones(1, *crop.pixels.shape[1:])
    if not (mask.getbbox() or config.unmasked_weight or config.formula == "a1111"):
        warnings.warn(
            f"{picture.mask or picture.path}: the mask is empty everywhere, so that "
            "nothing of the image is trained on; remove the image, or set "
            "data.masks.unmasked_weight",
            RecipeWarning,
            stacklevel=2,
        )
    cut = np.asarray(crop.cut.of(mask.convert("F"), Image.Resampling.BOX), np.float32)
    return torch.from_numpy(cut.copy()).div_(255)[None]


def mask_weights(shares: Tensor, config: MaskConfig) -> Tensor:
    """Convert the result of `mask_shares` to loss weights of the same shape.

    A mask that is 0 in the whole crop stays 0: its example has a loss of 0.
    """
    if config.formula == "a1111":
        weights = shares - shares.min()
        mean = weights.mean()
        return weights / mean if mean else torch.ones_like(weights)
    weights = shares.clamp(min=config.unmasked_weight)
    mean = weights.mean()
    return weights / mean if config.normalize and mean else weights


def read_mask(path: Path) -> Image.Image:
    """Return an upright mask in grey (mode L); its transparent parts are black.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with open_file(path) as file, Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in DEEP:
                deep = np.asarray(image).astype(np.float32)
                return Image.fromarray(np.round(deep / 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                base = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(base, image)
            return image.convert("L")
    except READING_ERRORS as error:
        raise DataError(f"{path}: cannot be read as a mask: {error}; mend or remove it") from None


def check_shape(mask: Image.Image, picture: Picture, crop: Crop) -> None:
    """Raise DataError unless the mask has the aspect ratio of its image."""
    height, width = (int(side) for side in crop.sizes[:2])
    if abs(mask.width * height / (mask.height * width) - 1) > TOLERANCE:
        raise DataError(
            f"{picture.mask}: is {mask.width}x{mask.height}, and its picture {picture.path} is "
            f"{width}x{height}; a mask has the shape of its picture"
        )
