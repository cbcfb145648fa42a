"""How the animation asks for a picture, and generators that need no model.

The engine speaks to a base model through `FrameGenerator` only, so that all it does can be tested
with pictures whose pixels are known beforehand.
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
    """One picture of an animation. The words are those of the settings file."""

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
    """Prompts joined by AND are mixed into one by their embeddings; else each of them leads."""
    init: Picture | None = None
    """What is drawn over; None draws from noise alone."""
    strength: float = 0.0
    """How much of `init` stays, 0 … 1; A1111's denoising strength is 1 - strength."""
    mask: np.ndarray | None = None
    """uint8 (height, width): 255 is drawn, 0 stays. Only with `init`."""
    masked_content: str = "original"
    """`fill`, `original`, `latent noise` or `latent nothing`."""
    mask_blur: int = 4
    full_res_mask: bool = False
    """Draw the mask's surroundings alone, in full size (A1111's `Only masked`)."""
    full_res_mask_padding: int = 4
    subseed: int = 0
    subseed_strength: float = 0.0
    seed_resize_from: tuple[int, int] = (0, 0)
    """Width and height; 0 is off."""
    noise_multiplier: float = 1.0
    """Factor of the noise laid over `init`."""
    eta: float | None = None
    """Share of fresh noise of ancestral samplers; None is the sampler's own."""
    ddim_eta: float | None = None
    clip_skip: int | None = None
    """None is the base model's own."""
    checkpoint: str | None = None
    """Another base model's name; None is the recipe's."""
    tiling: bool = False
    restore_faces: bool = False
    artifact_strengths: Mapping[str, float] = field(default_factory=dict)
    """Strengths of attached artifacts by the recipe's names for them, where a schedule says so."""
    freeu: tuple[float, float, float, float] | None = None
    """b1, b2, s1, s2 of FreeU (Si et al. 2023, arXiv 2309.11497)."""


class FrameGenerator(Protocol):
    """Draws what it is asked for. The same request always gives the same picture."""

    def generate(self, request: FrameRequest) -> Picture:
        """One picture of the request's size."""
        ...

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        """Pictures that do not depend on one another, in the requests' order."""
        ...


class OneByOne:
    """For generators that gain nothing by batches."""

    def generate(self, request: FrameRequest) -> Picture:
        raise NotImplementedError

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        return [self.generate(request) for request in requests]


class IdentityGenerator(OneByOne):
    """Gives back the init image; without one a given first picture, or one of random pixels."""

    def __init__(self, first: Picture | None = None) -> None:
        self.first = first

    def generate(self, request: FrameRequest) -> Picture:
        if request.init is not None:
            return request.init.copy()
        if self.first is not None:
            return self.first.copy()
        return random_picture(request.width, request.height, seed=0)


class ConstantGenerator(OneByOne):
    """Every picture has one colour (r, g, b), 0 … 255."""

    def __init__(self, color: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.color = color

    def generate(self, request: FrameRequest) -> Picture:
        shape = request.height, request.width, 3
        return np.broadcast_to(np.array(self.color, np.uint8), shape).copy()


class AffineGenerator(OneByOne):
    """factor x init + offset, rounded and held within 0 … 255; begins from random pixels."""

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
    """Random pixels of the request's seed, mixed with the init image as its strength says.

    So every picture depends on every seed and every picture before it, as with a model.
    """

    def generate(self, request: FrameRequest) -> Picture:
        fresh = random_picture(request.width, request.height, request.seed)
        if request.init is None:
            return fresh
        weight = request.strength
        mixed = request.init * weight + fresh * (1 - weight)
        return mixed.round().clip(0, 255).astype(np.uint8)


class RecordGenerator:
    """Notes every request, and lets another generator answer it."""

    def __init__(self, inner: FrameGenerator) -> None:
        self.inner = inner
        self.requests: list[FrameRequest] = []
        self.batches: list[int] = []
        """How many pictures were asked for at once."""

    def generate(self, request: FrameRequest) -> Picture:
        return self.generate_batch([request])[0]

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        self.requests += requests
        self.batches.append(len(requests))
        return self.inner.generate_batch(requests)


class PreviewGenerator(OneByOne):
    """`motion_preview_mode`: shows how the camera moves, without a model.

    The first picture is a grid of lines; each later one is its init image with a frame in its
    middle laid over at weight 1 - strength, so that what is drawn anew can be told from what moves.
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
    """Random pixels, smooth over 8 pixels so that flow and warps find something to hold on to."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float64)
    rows, columns = np.arange(height) / 8, np.arange(width) / 8
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = small[top][:, left] * (1 - right) + small[top][:, left + 1] * right
    lower = small[top + 1][:, left] * (1 - right) + small[top + 1][:, left + 1] * right
    return (upper * (1 - down) + lower * down).round().astype(np.uint8)


def lines(width: int, height: int) -> Picture:
    """White lines on blue, sixteen to a side."""
    picture = np.full((height, width, 3), (30, 60, 120), np.uint8)
    picture[:: max(1, height // 16)] = 255
    picture[:, :: max(1, width // 16)] = 255
    return picture
