"""Noise that is added to each frame before diffusion (Deforum 3.0 `deforum_helpers/noise.py`).

White noise, or white noise within clouds of Perlin noise (K. Perlin, "Improving Noise", 2002: fade
6t⁵ − 15t⁴ + 10t³, gradients of unit length at random angles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from inference.deforum.geometry import Bytes, Floats, Pixels, alike
from inference.deforum.settings import DEFORUM, FIXED, Compat

DEFORUM_MULTIPLE = 64
"""Deforum 3.0 draws noise at sides that are multiples of this, and resizes it."""


@dataclass(frozen=True)
class NoiseSettings:
    """Type and structure of the noise.

    Attributes:
        kind: "perlin" or "uniform" (`noise_type`); the latter is white noise.
        cells_x: cells of the coarsest octave along the width (`perlin_w`), 1 or more.
        cells_y: along the height (`perlin_h`).
        octaves: each doubles the cells, 1 … 7.
        persistence: amplitude of an octave relative to the previous one, 0 … 1.
    """

    kind: Literal["perlin", "uniform"] = "perlin"
    cells_x: int = 8
    cells_y: int = 8
    octaves: int = 4
    persistence: float = 0.5


def add_noise(
    image: Pixels,
    amount: float,
    seed: int,
    settings: NoiseSettings | None = None,
    mask: Bytes | None = None,
    compat: Compat = FIXED,
) -> Pixels:
    """Return the image · (1 − amount) + noise · amount. The mean moves towards 127.5 by `amount`.

    Args:
        image: (h, w, 3), of any size.
        amount: 0 … 1; 0 changes nothing.
        seed: of the noise.
        settings: type of noise; `NoiseSettings()` if None.
        mask: (h, w); noise is added where it is 128 or more. In Deforum 3.0 mid-grey is added
            elsewhere.
        compat: "deforum-3.0" draws at multiples of 64, truncates the noise to integers and has its
            channels in the order BGR.
    """
    if amount == 0:
        return image.copy()
    settings = settings or NoiseSettings()
    height, width = image.shape[:2]
    painted = None if mask is None else (mask >= 128)[..., None]
    if compat == DEFORUM:
        noise = _deforum_noise(width, height, seed, settings, painted)
        return alike(image * (1 - amount) + noise.astype(np.float32) * amount, image)
    noise = _levels(draw_noise(width, height, seed, settings))
    result = alike(image * (1 - amount) + noise * amount, image)
    return result if painted is None else np.where(painted, result, image)


def draw_noise(width: int, height: int, seed: int, settings: NoiseSettings) -> Floats:
    """Return noise of mean 0: (height, width, 3), float32. Drawn on the CPU, the same everywhere.

    At multiples of 64 (and at most 4 octaves) the values are those of Deforum 3.0.
    """
    generator = Generator().manual_seed(seed)
    noise = torch.randn((3, height, width), generator=generator)
    if settings.kind == "perlin":
        noise = noise * ((_clouds(width, height, settings, generator) + 1) / 2)
    return noise.permute(1, 2, 0).contiguous().numpy()


def _levels(noise: Floats) -> Floats:
    """Map −1 … 1 to 0 … 255, clipped."""
    return (noise / 2 + 0.5).clip(0, 1) * 255


def _deforum_noise(
    width: int,
    height: int,
    seed: int,
    settings: NoiseSettings,
    painted: NDArray[np.bool_] | None,
) -> Bytes:
    """Return Deforum's noise image, (height, width, 3), RGB; sides below 64 are not resized."""
    drawn = [side // DEFORUM_MULTIPLE * DEFORUM_MULTIPLE or side for side in (width, height)]
    noise = draw_noise(drawn[0], drawn[1], seed, settings)[..., ::-1]
    rows = np.arange(height) * drawn[1] // height
    columns = np.arange(width) * drawn[0] // width
    noise = noise[rows[:, None], columns]
    return _levels(noise if painted is None else noise * painted).astype(np.uint8)


def _clouds(width: int, height: int, settings: NoiseSettings, generator: Generator) -> Tensor:
    """Return octaves of Perlin noise, (height, width), about −1 … 1.

    Drawn at the next size that the cells of all octaves divide, then cropped.
    """
    finest = 2 ** (settings.octaves - 1)
    cells = settings.cells_y, settings.cells_x
    padded = [
        math.ceil(n / (k * finest)) * k * finest
        for n, k in zip((height, width), cells, strict=True)
    ]
    total = torch.zeros(padded[0], padded[1])
    for octave in range(settings.octaves):
        counts = [count * 2**octave for count in cells]
        layer = _perlin(padded, counts, generator)
        total += settings.persistence**octave * layer
    return total[:height, :width]


def _perlin(shape: list[int], cells: list[int], generator: Generator) -> Tensor:
    """Return one octave of gradient noise: `shape` (rows, columns) over `cells` (rows, columns)."""
    angles = 2 * math.pi * torch.rand(cells[0] + 1, cells[1] + 1, generator=generator)
    steps = [side // count for side, count in zip(shape, cells, strict=True)]
    rows, columns = (torch.arange(side) for side in shape)
    cell_y, cell_x = rows // steps[0], columns // steps[1]
    y = ((rows % steps[0]) / steps[0])[:, None]
    x = ((columns % steps[1]) / steps[1])[None]

    def corner(down: int, right: int) -> Tensor:
        angle = angles[cell_y + down][:, cell_x + right]
        return torch.cos(angle) * (y - down) + torch.sin(angle) * (x - right)

    along_y, along_x = _fade(y), _fade(x)
    left = torch.lerp(corner(0, 0), corner(1, 0), along_y)
    right = torch.lerp(corner(0, 1), corner(1, 1), along_y)
    return math.sqrt(2) * torch.lerp(left, right, along_x)


def _fade(t: Tensor) -> Tensor:
    return 6 * t**5 - 15 * t**4 + 10 * t**3
