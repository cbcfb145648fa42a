"""The interface through which an animation requests images, and generators without a model.

The engine uses a base model only through `FrameGenerator`, so that everything else can be tested
with images whose pixels are known in advance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Picture = np.ndarray
"""uint8 RGB, (height, width, 3)."""


@dataclass(frozen=True)
class FrameRequest:
    """A request for one image of an animation. Names are those of the settings file."""

    frame: int
    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int
    steps: int = 25
    cfg_scale: float = 7.0
    sampler: str = "Euler a"
    mixes_embeddings: bool = False
    """Mix the embeddings of prompts joined by AND; otherwise each guides by itself."""
    init: Picture | None = None
    """Init image; None generates from noise alone."""
    strength: float = 0.0
    """How much of `init` stays, 0 … 1; A1111's denoising strength is 1 - strength."""
    mask: np.ndarray | None = None
    """uint8 (height, width): 255 is generated, 0 stays. Only with `init`."""
    masked_content: str = "original"
    """`fill`, `original`, `latent noise` or `latent nothing`."""
    mask_blur: int = 4
    full_res_mask: bool = False
    """Generate only the mask's surroundings, at full resolution (A1111's `Only masked`)."""
    full_res_mask_padding: int = 4
    subseed: int = 0
    subseed_strength: float = 0.0
    seed_resize_from: tuple[int, int] = (0, 0)
    """Width and height; 0 is off."""
    noise_multiplier: float = 1.0
    """Factor of the noise added to `init`."""
    eta: float | None = None
    """Fraction of fresh noise in ancestral samplers; None is the sampler's default."""
    ddim_eta: float | None = None
    clip_skip: int | None = None
    """None is the base model's."""
    checkpoint: str | None = None
    """Name of another base model; None is the recipe's."""
    tiling: bool = False
    restore_faces: bool = False
    artifact_strengths: Mapping[str, float] = field(default_factory=dict)
    """Strengths of attached artifacts, by their names in the recipe, if a schedule sets them."""
    freeu: tuple[float, float, float, float] | None = None
    """b1, b2, s1, s2 of FreeU (Si et al. 2023, arXiv 2309.11497)."""


class FrameGenerator(Protocol):
    """Generates requested images. The same request always gives the same image."""

    def generate(self, request: FrameRequest) -> Picture:
        """Return one image of the request's size."""
        ...

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        """Return images that do not depend on each other, in the requests' order."""
        ...


class OneByOne:
    """For generators that do not benefit from batches."""

    def generate(self, request: FrameRequest) -> Picture:
        raise NotImplementedError

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        return [self.generate(request) for request in requests]


class IdentityGenerator(OneByOne):
    """Returns the init image; without one, a given first image, or random pixels."""

    def __init__(self, first: Picture | None = None) -> None:
        self.first = first

    def generate(self, request: FrameRequest) -> Picture:
        if request.init is not None:
            return request.init.copy()
        if self.first is not None:
            return self.first.copy()
        return random_picture(request.width, request.height, seed=0)


class ConstantGenerator(OneByOne):
    """Returns images of one colour (r, g, b), 0 … 255."""

    def __init__(self, color: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.color = color

    def generate(self, request: FrameRequest) -> Picture:
        shape = request.height, request.width, 3
        return np.broadcast_to(np.array(self.color, np.uint8), shape).copy()


class AffineGenerator(OneByOne):
    """Returns factor x init + offset, rounded and clipped to 0 … 255; starts from random pixels."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        self.factor = factor
        self.offset = offset

    def generate(self, request: FrameRequest) -> Picture:
        init = request.init
        if init is None:
            init = random_picture(request.width, request.height, seed=0)
        changed = init.astype(np.float64) * self.factor + self.offset
        return changed.round().clip(0, 255).astype(np.uint8)


class SeededGenerator(OneByOne):
    """Returns random pixels of the request's seed, mixed with the init image by its strength.

    So every image depends on every seed and every previous image, as with a model.
    """

    def generate(self, request: FrameRequest) -> Picture:
        fresh = random_picture(request.width, request.height, request.seed)
        if request.init is None:
            return fresh
        weight = request.strength
        mixed = request.init * weight + fresh * (1 - weight)
        return mixed.round().clip(0, 255).astype(np.uint8)


class RecordGenerator:
    """Records every request, and passes it to another generator."""

    def __init__(self, inner: FrameGenerator) -> None:
        self.inner = inner
        self.requests: list[FrameRequest] = []
        self.batches: list[int] = []
        """Number of images of each request."""

    def generate(self, request: FrameRequest) -> Picture:
        return self.generate_batch([request])[0]

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        self.requests += requests
        self.batches.append(len(requests))
        return self.inner.generate_batch(requests)


class PreviewGenerator(OneByOne):
    """`motion_preview_mode`: shows the camera's motion, without a model.

    The first image is a grid of lines; each later one is its init image with a rectangle in the
    middle, blended at weight 1 - strength, which distinguishes generated content from moved
    content.
    """

    def generate(self, request: FrameRequest) -> Picture:
        picture = lines(request.width, request.height) if request.init is None else request.init
        if request.init is None:
            return picture
        marked = picture.astype(np.float64)
        rows, columns = request.height // 4, request.width // 4
        middle = slice(rows, request.height - rows), slice(columns, request.width - columns)
        weight = min(max(1 - request.strength, 0.0), 1.0)
        marked[middle] = marked[middle] * (1 - weight) + np.array([255.0, 160.0, 0.0]) * weight
        return marked.round().astype(np.uint8)


def random_picture(width: int, height: int, seed: int) -> Picture:
    """Return random pixels, smooth over 8 pixels so that flow and warps have some texture."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float64)
    rows, columns = np.arange(height) / 8, np.arange(width) / 8
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = small[top][:, left] * (1 - right) + small[top][:, left + 1] * right
    lower = small[top + 1][:, left] * (1 - right) + small[top + 1][:, left + 1] * right
    return (upper * (1 - down) + lower * down).round().astype(np.uint8)


def lines(width: int, height: int) -> Picture:
    """Return white lines on blue, sixteen per side."""
    picture = np.full((height, width, 3), (30, 60, 120), np.uint8)
    picture[:: max(1, height // 16)] = 255
    picture[:, :: max(1, width // 16)] = 255
    return picture
