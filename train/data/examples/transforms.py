"""A picture file becomes the pixels of an example."""

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
"""Of red, green and blue in grey (ITU-R BT.601), as Pillow and torchvision take it."""


def jittered(pixels: np.ndarray, config: ColorJitterConfig, draw: random.Random) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed in this order.

    Args:
        pixels: (h, w, 3), 0 … 255.
        config: how much; four numbers are drawn whatever it says.
        draw: where they come from.

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
    """Hues moved by a share of the colour circle; value and saturation of HSV stay."""
    high, low = values.max(-1), values.min(-1)
    chroma = np.where(high > low, high - low, 1.0)
    red, green, blue = ((high - values[..., channel]) / chroma for channel in range(3))
    leading = values.argmax(-1)
    hue = np.choose(leading, [blue - green, 2 + red - blue, 4 + green - red]) + 6 * turn
    # Each channel falls from the highest to the lowest value two sixths away from its own hue.
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
    """Where in its picture an example lies; its mask goes the same way."""

    scaled: tuple[int, int]
    """Width and height of the scaled picture."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom within it. What is beyond it repeats its edges."""
    is_mirrored: bool

    def of(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """What the example shows of an upright picture of any size."""
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


class Piece(NamedTuple):
    """What an example shows of a picture, and what SDXL is told of it (arXiv 2307.01952, 2.2)."""

    pixels: Tensor
    """(3, height, width) in -1 … 1."""
    sizes: Tensor
    """(6,), in pixels: the upright file's height and width, the cut's top and left within the
    scaled picture (mirrored with it), the example's height and width."""
    cut: Cut
    alpha: Image.Image | None
    """Opacity of the whole upright picture, mode L; None where it is opaque."""


def cut_piece(path: Path, config: ExampleConfig, place: Place, draw: random.Random) -> Piece:
    """The piece of a picture that an example shows.

    Args:
        path: the picture's file.
        config: how it is laid on a background, scaled, cut, mirrored and changed in colour.
        place: the example's size, and of the scaled picture where that does not follow from it.
        draw: where the random choices come from.

    Raises:
        DataError: the file is broken, or with `resize: none` smaller than the example.
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
    told = (max(top, 0), max(room_x - left if cut.is_mirrored else left, 0))
    alpha = opened.getchannel("A") if opened.mode == "RGBA" else None
    return Piece(pixels, torch.tensor([*own, *told, *size]), cut, alpha)


def scaled_size(path: Path, own: Size, size: Size, resize: str) -> Size:
    """What a picture is scaled to before an example of some size is cut out of it.

    `stretch`, `cover` and `fill` are A1111's just resize, crop and resize, and resize and fill
    (`modules/images.py` resize_image); `fill` leaves room that the picture's edges fill up.

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
    """RGB: a transparent picture on a plain colour, others as they are."""
    colour = BACKGROUNDS.get(background) or tuple(draw.randrange(256) for _ in range(3))
    if image.mode == "RGB":
        return image
    base = Image.new("RGBA", image.size, (*colour, 255))
    return Image.alpha_composite(base, image).convert("RGB")
