"""Convert an image file to the pixels of an example."""

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from train.common import DataError
from train.config import ColorJitterConfig, ExampleConfig, Size
from train.data.examples.picture_buckets import Place
from train.data.pictures import MAX_PIXELS, read_picture, shown

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow and torchvision."""


def jittered(pixels: np.ndarray, config: ColorJitterConfig, draw: random.Random) -> np.ndarray:
    """Change brightness, contrast, saturation and hue in this order.

    Args:
        pixels: (h, w, 3), 0 … 255.
        config: how much; four numbers are drawn in any case.
        draw: source of random numbers.

    Returns:
        (h, w, 3), float64, 0 … 255, not rounded.
    """
    brightness, contrast, saturation = (
        1 + amount * draw.uniform(-1, 1)
        for amount in (config.brightness, config.contrast, config.saturation)
    )
    turn = config.hue * draw.uniform(-1, 1)
    values = (pixels * brightness).clip(0, 255)
    mean = (values @ LUMA).mean()
    values = (mean + (values - mean) * contrast).clip(0, 255)
    grey = (values @ LUMA)[..., None]
    values = (grey + (values - grey) * saturation).clip(0, 255)
    return turned(values, turn) if turn else values


def turned(values: np.ndarray, turn: float) -> np.ndarray:
    """Rotate hues by a fraction of the colour circle; value and saturation of HSV do not change."""
    high, low = values.max(-1), values.min(-1)
    chroma = np.where(high > low, high - low, 1.0)
    red, green, blue = ((high - values[..., channel]) / chroma for channel in range(3))
    leading = values.argmax(-1)
    hue = np.choose(leading, [blue - green, 2 + red - blue, 4 + green - red]) + 6 * turn
    # Each channel falls from its maximum to its minimum two sixths away from its own hue.
    channels = []
    for own in (0, 2, 4):
        distance = np.abs((hue - own + 3) % 6 - 3)
        channels.append(high - (high - low) * np.clip(distance - 1, 0, 1))
    return np.stack(channels, -1)


BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}


RESAMPLINGS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


class Cut(NamedTuple):
    """Position of an example in its image, also used for its mask."""

    scaled: tuple[int, int]
    """Width and height of the scaled picture."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom within it. Outside of the image its edges are repeated."""
    is_mirrored: bool

    def of(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Return the crop of an upright image of any size."""
        if image.size != self.scaled:
            image = image.resize(self.scaled, resampling)
        left, top, right, bottom = self.box
        if left < 0 or top < 0 or right > image.width or bottom > image.height:
            columns = np.arange(left, right).clip(0, image.width - 1)
            rows = np.arange(top, bottom).clip(0, image.height - 1)
            image = Image.fromarray(np.asarray(image)[rows][:, columns])
        else:
            image = image.crop(self.box)
        return ImageOps.mirror(image) if self.is_mirrored else image


class Crop(NamedTuple):
    """The crop of an image in an example, and SDXL's size conditioning (arXiv 2307.01952, 2.2)."""

    pixels: Tensor
    """(3, height, width) in -1 … 1."""
    sizes: Tensor
    """(6,), in pixels: the upright file's height and width, the crop's top and left within the
    scaled image (mirrored with it), the example's height and width."""
    cut: Cut
    alpha: Image.Image | None
    """Opacity of the whole upright image, mode L; None if it is opaque."""


def crop_image(path: Path, config: ExampleConfig, place: Place, draw: random.Random) -> Crop:
    """Return the crop of an image for an example.

    Args:
        path: the file of the image.
        config: background, scaling, crop, flip and colour changes.
        place: size of the example, and of the scaled image unless it follows from it.
        draw: source of random numbers.

    Raises:
        DataError: the file is corrupt, or with `resize: none` smaller than the example.
    """
    opened = read_picture(path)
    image = lay_on_background(opened, config.background, draw)
    own, size = Size(image.height, image.width), place.size
    scaled = place.scaled or scaled_size(path, own, size, config.resize)
    if scaled.height * scaled.width > MAX_PIXELS:
        raise DataError(
            f"{shown(path)}: {own.width}x{own.height} is too long to be scaled to "
            f"{scaled.width}x{scaled.height}; cut or remove it"
        )
    room_y, room_x = scaled.height - size.height, scaled.width - size.width
    if config.resize == "fill":
        left, top = (scaled.width // 2 - size.width // 2, scaled.height // 2 - size.height // 2)
    elif config.crop == "random":
        left, top = draw.randint(0, room_x), draw.randint(0, room_y)
    else:
        left, top = room_x // 2, room_y // 2
    box = (left, top, left + size.width, top + size.height)
    cut = Cut((scaled.width, scaled.height), box, draw.random() < config.flip)
    array = np.asarray(cut.of(image, RESAMPLINGS[config.resize_interpolation]), dtype=np.uint8)
    if config.color_jitter is not None and config.color_jitter.is_random:
        array = jittered(array, config.color_jitter, draw)
    pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)
    offsets = (max(top, 0), max(room_x - left if cut.is_mirrored else left, 0))
    alpha = opened.getchannel("A") if opened.mode == "RGBA" else None
    return Crop(pixels, torch.tensor([*own, *offsets, *size]), cut, alpha)


def scaled_size(path: Path, own: Size, size: Size, resize: str) -> Size:
    """Return the size of a scaled image before it is cropped.

    `stretch`, `cover` and `fill` are A1111's just resize, crop and resize, and resize and fill
    (`modules/images.py` resize_image); with `fill` the rest is filled by repeating the image's
    edges.

    Raises:
        DataError: with `none` it is smaller than the example.
    """
    if resize == "stretch":
        return size
    if resize == "fill":
        if size.width * own.height < own.width * size.height:
            return Size(max(1, own.height * size.width // own.width), size.width)
        return Size(size.height, max(1, own.width * size.height // own.height))
    if resize == "cover":
        scale = max(size.height / own.height, size.width / own.width)
        height, width = round(own.height * scale), round(own.width * scale)
        return Size(max(size.height, height), max(size.width, width))
    if own.height < size.height or own.width < size.width:
        raise DataError(
            f"{shown(path)}: {own.width}x{own.height} is smaller than data.resolution "
            f"{size.width}; data.resize=cover scales it up"
        )
    return own


def lay_on_background(image: Image.Image, background: str, draw: random.Random) -> Image.Image:
    """Convert to RGB, with a plain colour behind transparent images."""
    colour = BACKGROUNDS.get(background) or tuple(draw.randrange(256) for _ in range(3))
    if image.mode == "RGB":
        return image
    base = Image.new("RGBA", image.size, (*colour, 255))
    return Image.alpha_composite(base, image).convert("RGB")
