"""Aspect-ratio buckets: the size of each image's example, and of the scaled image."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from inference.config import check_size
from inference.runtime import InputError
from train.common import DataError
from train.config import PictureBucketsConfig, Size, parse_size

SDXL = """
    2048x512 1984x512 1920x512 1856x512 1792x576 1728x576 1664x576 1600x640 1536x640 1472x704
    1408x704 1344x768 1280x768 1216x832 1152x832 1152x896 1088x896 1088x960 1024x960 1024x1024
    960x1024 960x1088 896x1088 896x1152 832x1152 832x1216 768x1280 768x1344 704x1344 704x1408
    704x1472 640x1536 640x1600 576x1664 576x1728 576x1792 512x1856 512x1920 512x1984 512x2048
"""
"""Height x width, Podell et al. 2023 (arXiv 2307.01952), appendix I."""
SDXL_SIZES = tuple(parse_size(text) for text in SDXL.split())


class Place(NamedTuple):
    """Size of an image's example, and of the scaled image that it is cropped from."""

    size: Size
    scaled: Size | None = None
    """None if it follows from the size, by data.resize."""


@dataclass(frozen=True)
class SizeRule:
    """Assign a place to every image: kohya's `BucketManager` (sd-scripts `library/train_util.py`).

    Without `buckets` each image keeps its own size, rounded down to multiples of `step` (A1111: do
    not resize images).
    """

    buckets: PictureBucketsConfig | None
    resolution: int
    """Square root of the area, if the recipe does not set the area."""
    step: int
    """Multiple of the base model's sizes, in pixels."""
    key: str = "data"
    """The recipe key of these settings."""

    def check(self) -> None:
        """Reject what the base model does not accept.

        Raises:
            InputError: a side is not a multiple of the step, or there is no size.
        """
        check_size(f"{self.key}.resolution", self.resolution, self.step)
        config = self.buckets
        if config is None:
            return
        if not (config.sizes or config.preset == "sdxl"):
            check_size(f"{self.key}.buckets.step", config.step, self.step)
            if not config.no_upscale and not self.sizes:
                raise InputError(
                    f"{self.key}.buckets: no size of {self.area} pixels has sides of "
                    f"{config.min_side} to {config.max_side}; lower min_side, or raise max_side or "
                    f"{self.key}.resolution"
                )
        for size in self.sizes:
            for side in size:
                check_size(f"{self.key}.buckets: {size}", side, self.step)

    @property
    def area(self) -> int:
        """Return the maximum number of pixels of an example."""
        area = None if self.buckets is None else self.buckets.area
        return self.resolution**2 if area is None else area

    @cached_property
    def sizes(self) -> list[Size]:
        """Return the sizes by width and height; none if each image has its own."""
        config = self.buckets
        if config is None or config.no_upscale:
            return []
        if config.sizes:
            sizes: Iterable[Size] = config.listed
        elif config.preset == "sdxl":
            sizes = SDXL_SIZES
        else:
            sizes = kohya_sizes(self.area, config.min_side, config.max_side, config.step)
        return sorted(sizes, key=lambda size: (size.width, size.height))

    @cached_property
    def _ratios(self) -> np.ndarray:
        return np.array([size.width / size.height for size in self.sizes])

    def place(self, width: int, height: int) -> Place:
        """Return the place of an image.

        Raises:
            DataError: without scaling up, it is smaller than one step.
        """
        if self.buckets is None:
            return _cut_off(Size(height, width), self.step, f"{self.key}.resize: own_size")
        if self.buckets.no_upscale:
            scaled = scaled_down(width, height, self.area, self.buckets.step)
            return _cut_off(scaled, self.buckets.step, f"{self.key}.buckets.no_upscale")
        return self._nearest(width, height)

    def _nearest(self, width: int, height: int) -> Place:
        """Return the size with exactly these sides, else the first of the nearest aspect ratio."""
        ratio, size = width / height, Size(height, width)
        if size not in self.sizes:
            size = self.sizes[int(np.abs(self._ratios - ratio).argmin())]
        # Fill the side for which the other one is cropped.
        is_wider = ratio > size.width / size.height
        scale = size.height / height if is_wider else size.width / width
        return Place(size, Size(int(height * scale + 0.5), int(width * scale + 0.5)))


def kohya_sizes(area: int, min_side: int, max_side: int, step: int) -> list[Size]:
    """Return the sizes of kohya's `make_bucket_resolutions`, all of about the same area.

    Args:
        area: maximum number of pixels.
        min_side: rounded down to a multiple of `step`.
        max_side: rounded up to a multiple of `step`.
        step: sides are multiples of it.
    """
    shortest, longest = min_side // step * step or step, -(-max_side // step) * step
    square = int(math.sqrt(area) // step) * step
    sizes = {Size(square, square)} if square else set()
    for side in range(shortest, longest + 1, step):
        other = min(longest, area // side // step * step)
        if other >= shortest:
            sizes |= {Size(side, other), Size(other, side)}
    return sorted(sizes)


def scaled_down(width: int, height: int, area: int, step: int) -> Size:
    """Scale as kohya's bucket_no_upscale: in the area, round one side to a multiple of `step`.

    The side is rounded for which the aspect ratio changes less.
    """
    if width * height <= area:
        return Size(height, width)
    ratio = width / height
    wide = math.sqrt(area * ratio)
    by_width = _rounded(wide, step)
    by_height = _rounded(area / wide, step)
    stretch_by_width = _stretch(by_width, _rounded(by_width / ratio, step), ratio)
    stretch_by_height = _stretch(_rounded(by_height * ratio, step), by_height, ratio)
    if stretch_by_width < stretch_by_height:
        return Size(int(by_width / ratio + 0.5), by_width)
    return Size(by_height, int(by_height * ratio + 0.5))


def _rounded(value: float, step: int) -> int:
    """Round as kohya's `round_to_steps`: to an integer, then down to a multiple."""
    whole = int(value + 0.5)
    return whole - whole % step


def _stretch(width: int, height: int, ratio: float) -> float:
    return abs(width / height - ratio) if height else math.inf


def _cut_off(scaled: Size, step: int, key: str) -> Place:
    size = Size(*(side // step * step for side in scaled))
    if 0 in size:
        raise DataError(
            f"with {key} a picture of {scaled.width}x{scaled.height} is smaller than {step}x{step};"
            " remove it"
        )
    return Place(size, scaled)
