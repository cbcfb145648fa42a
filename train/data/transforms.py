"""A picture file becomes a square of pixels."""

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from train.data.errors import DataError
from train.data.pictures import MAX_PIXELS, read_picture, shown
from train.subset_config import ExampleConfig

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}


class Cut(NamedTuple):
    """Where in its picture an example lies; its mask goes the same way."""

    scaled: tuple[int, int]
    """Width and height of the scaled picture."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom within it."""
    is_mirrored: bool

    def of(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """What the example shows of an upright picture of any size."""
        if image.size != self.scaled:
            image = image.resize(self.scaled, resampling)
        image = image.crop(self.box)
        return ImageOps.mirror(image) if self.is_mirrored else image


class Square(NamedTuple):
    """A square cut out of a picture, and what SDXL is told of it (arXiv 2307.01952, 2.2)."""

    pixels: Tensor
    """(3, resolution, resolution) in -1 … 1."""
    sizes: Tensor
    """(6,), in pixels: the upright file's height and width, the cut's top and left within the
    scaled picture (mirrored with it), the square's height and width."""
    cut: Cut
    alpha: Image.Image | None
    """Opacity of the whole upright picture, mode L; None where it is opaque."""


def cut_square(path: Path, config: ExampleConfig, resolution: int, draw: random.Random) -> Square:
    """The square that an example shows.

    Args:
        path: the picture's file.
        config: how it is laid on a background, scaled, cut and mirrored.
        resolution: side of the square.
        draw: where the random choices come from.

    Raises:
        DataError: the file is broken, or with `resize: none` smaller than the square.
    """
    opened = read_picture(path)
    image = lay_on_background(opened, config.background, draw)
    size = image.size
    if config.resize == "cover":
        scale = resolution / min(image.size)
        size = (
            max(resolution, round(image.width * scale)),
            max(resolution, round(image.height * scale)),
        )
        check_room(path, image.size, size)
    elif min(image.size) < resolution:
        raise DataError(
            f"{shown(path)}: {image.width}x{image.height} is smaller than "
            f"data.resolution {resolution}; data.resize=cover scales it up"
        )
    room_x, room_y = size[0] - resolution, size[1] - resolution
    if config.crop == "random":
        left, top = draw.randint(0, room_x), draw.randint(0, room_y)
    else:
        left, top = room_x // 2, room_y // 2
    box = (left, top, left + resolution, top + resolution)
    cut = Cut(size, box, draw.random() < config.flip)
    array = np.asarray(cut.of(image, Image.Resampling.LANCZOS), dtype=np.uint8)
    pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)
    told = (image.height, image.width, top, room_x - left if cut.is_mirrored else left)
    sizes = torch.tensor([*told, resolution, resolution])
    alpha = opened.getchannel("A") if opened.mode == "RGBA" else None
    return Square(pixels, sizes, cut, alpha)


def check_room(path: Path, own: tuple[int, int], scaled: tuple[int, int]) -> None:
    """Refuses what is so long and thin that scaling it would fill the memory.

    Raises:
        DataError: it would have more than `MAX_PIXELS`.
    """
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise DataError(
            f"{shown(path)}: {own[0]}x{own[1]} is too long to be scaled to "
            f"{scaled[0]}x{scaled[1]}; cut or remove it"
        )


def lay_on_background(image: Image.Image, background: str, draw: random.Random) -> Image.Image:
    """RGB: a transparent picture on a plain colour, others as they are."""
    colour = BACKGROUNDS.get(background) or tuple(draw.randrange(256) for _ in range(3))
    if image.mode == "RGB":
        return image
    base = Image.new("RGBA", image.size, (*colour, 255))
    return Image.alpha_composite(base, image).convert("RGB")
