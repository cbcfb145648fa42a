"""Random noise of images: each from its own seed, by A1111's rules.

Source: A1111 1.10.1 `modules/rng.py`.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, from_numpy

from inference.runtime import InputError, to_device

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF
INVERSE = 2.0**-32
ANGLE = float(np.float32(2 * np.pi * INVERSE))  # rounded as on the GPU

Words = np.ndarray


class Philox:
    """Random numbers of one seed. Each draw is the next block of the sequence, whatever its size.

    Args:
        seed: 0 … 2^64 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.offset = 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal noise of the shape, fp32, on the CPU."""
        index = np.arange(prod(shape), dtype=np.uint64)
        zero = np.zeros_like(index)
        words = philox4x32((zero + np.uint64(self.offset), zero, index, zero), self.seed)
        self.offset += 1
        noise = box_muller(words[0], words[1]).astype(np.float32)
        return from_numpy(noise.reshape(tuple(shape)))


def philox4x32(counter: Sequence[Words], key: int) -> tuple[Words, ...]:
    """Apply ten rounds with a 64-bit key to four 32-bit words, each an array of uint64."""
    first, second, third, fourth = counter
    low_key, high_key = key & WORD, (key >> 32) & WORD
    for _ in range(ROUNDS):
        one, two = first * np.uint64(MULTIPLIERS[0]), third * np.uint64(MULTIPLIERS[1])
        first, second, third, fourth = (
            (two >> np.uint64(32)) ^ second ^ np.uint64(low_key),
            two & np.uint64(WORD),
            (one >> np.uint64(32)) ^ fourth ^ np.uint64(high_key),
            one & np.uint64(WORD),
        )
        low_key, high_key = (low_key + KEY_STEPS[0]) & WORD, (high_key + KEY_STEPS[1]) & WORD
    return first, second, third, fourth


def box_muller(first: Words, second: Words) -> np.ndarray:
    """Map two 32-bit words, each spread over the middle of its cell, to one normal number."""
    radius = np.sqrt(-2 * np.log(first * INVERSE + INVERSE / 2))
    return radius * np.sin(second * ANGLE + ANGLE / 2)


RngSource = Literal["CPU", "GPU", "NV"]
"""Where noise is drawn: PyTorch's generator on the CPU, that of the generating device, or the
GPU's computed on the CPU. Without a CUDA GPU (a CPU, or
Apple's, as in A1111) the CPU's is used."""

Shape = tuple[int, ...]


class Draws(Protocol):
    """The sequence of random numbers of one seed."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal noise of the shape, fp32."""
        ...


class TorchDraws:
    """Random numbers of PyTorch's generator on a device."""

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal noise of the shape, fp32, on the generator's device."""
        return torch.randn(tuple(shape), generator=self.generator, device=self.device)


@dataclass(frozen=True)
class SeedVariation:
    """A1111's extra seed settings, which change the first noise.

    Raises:
        InputError: the strength is not in 0 … 1.
    """

    subseeds: Sequence[int] = ()
    """Variation seeds, one for each image; with `strength`."""
    strength: float = 0.0
    """0 … 1, interpolates the first noise towards that of the subseed."""
    resize_from: tuple[int, int] | None = None
    """(h, w) in units of the latent; the first noise is that of an image of this size,
    centred in noise of the image's own."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(f"variation strength: must lie in 0 … 1, got {self.strength}")

    def first_shape(self, shape: Shape) -> Shape:
        """Return the shape of the first noise of an image whose latent has `shape`."""
        height, width = self.resize_from or (0, 0)
        return (shape[0], height, width) if height > 0 and width > 0 else shape


UNVARIED = SeedVariation()


class NoiseSource:
    """Fresh noise of every image of a batch from its own generator.

    So an image depends on its seed and not on its neighbours. The first draw is the initial
    noise; later ones continue the same sequence, or that of seed + `ensd`.

    Args:
        seeds: one for each image.
        shape: of one image's latent, (c, h, w); of clips (f, c, h, w).
        device: where the noise is needed.
        source: which generator draws.
        variation: changes of the first noise.
        ensd: A1111's eta noise seed delta. After the first draw the generators restart with
            seed + ensd; with 0 they continue.
        brownian_range: (lowest above 0, highest) sigma of the whole schedule, if samplers are given
            only a part of it, so that Brownian paths stay the same.

    Raises:
        InputError: the source is unknown.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Shape,
        device: torch.device | str = "cpu",
        *,
        source: RngSource = "CPU",
        variation: SeedVariation = UNVARIED,
        ensd: int = 0,
        brownian_range: tuple[float, float] | None = None,
    ) -> None:
        if source not in get_args(RngSource):
            names = ", ".join(get_args(RngSource))
            raise InputError(f"RNG source: expected one of {names}; got {source!r}")
        if variation.strength and len(variation.subseeds) != len(seeds):
            raise ValueError("a variation's strength needs one subseed for each seed")
        self.seeds = list(seeds)
        self.shape = shape
        self.device = torch.device(device)
        self.source: RngSource = source
        self.variation = variation
        self.first_shape = variation.first_shape(shape)
        self.ensd = ensd
        self.brownian_range = brownian_range
        self._draws: list[Draws] | None = None

    def normal(self) -> Tensor:
        """Return standard normal noise (b, c, h, w), fp32."""
        if self._draws is None:
            self._draws = [self.start(seed) for seed in self.seeds]
            noise = [self.first(index, draws) for index, draws in enumerate(self._draws)]
            if self.ensd:
                self._draws = [self.start(seed + self.ensd) for seed in self.seeds]
        else:
            noise = [draws.normal(self.shape) for draws in self._draws]
        return to_device(torch.stack(noise), self.device)

    def start(self, seed: int) -> Draws:
        """Return the sequence of a seed, from its beginning."""
        return Philox(seed) if self.source == "NV" else TorchDraws(seed, self.draw_device)

    @property
    def draw_device(self) -> torch.device:
        """Return the device of PyTorch's generators."""
        is_elsewhere = self.source == "GPU" and self.device.type not in ("cpu", "mps")
        return self.device if is_elsewhere else torch.device("cpu")

    def first(self, index: int, draws: Draws) -> Tensor:
        """Return the initial noise (c, h, w) of an image; `draws` is its sequence."""
        is_resized = self.first_shape != self.shape
        source = self.start(self.seeds[index]) if is_resized else draws
        noise = source.normal(self.first_shape)
        if self.variation.strength:
            other = self.start(self.variation.subseeds[index]).normal(self.first_shape)
            noise = slerp(self.variation.strength, noise, other)
        return paste_centred(noise, draws.normal(self.shape)) if is_resized else noise

    def brownian(self, sigma_min: float, sigma_max: float) -> Callable[[float, float], Tensor]:
        """Return a Brownian path for each image's seed: (sigma, next sigma) -> noise.

        The noise, (b, c, h, w), has variance 1 and is the path's increment between two sigmas, so
        that more steps follow the same path (Li et al. 2020, arXiv 2001.01328; torchsde). The path
        spans `brownian_range`, if that was given. Each image's path is drawn in a thread: of SDXL's
        size one takes 20 ms a step.
        """
        from torchsde import BrownianTree

        low_end, high_end = self.brownian_range or (sigma_min, sigma_max)
        start = torch.zeros(self.shape, device=self.draw_device)
        with self.node_noise():
            trees = [BrownianTree(low_end, start, high_end, entropy=seed) for seed in self.seeds]

        def way(sigma: float, next_sigma: float) -> Tensor:
            low, high = sorted((sigma, next_sigma))
            sign = 1 if next_sigma > sigma else -1
            with self.node_noise(), warnings.catch_warnings():
                # torchsde rounds the tree's ends to six digits
                warnings.filterwarnings("ignore", "Should have t", UserWarning)
                noise = torch.stack(in_threads([partial(tree, low, high) for tree in trees]))
            return to_device(noise * (sign / sqrt(high - low)), self.device)

        return way

    def node_noise(self) -> AbstractContextManager[None]:
        """Let Brownian trees draw from this source's generators, inside the context."""
        return philox_nodes() if self.source == "NV" else nullcontext()


def in_threads(draws: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """Return the results of several draws in their order, each made in a thread of its own."""
    if len(draws) == 1:
        return [draws[0]()]
    with ThreadPoolExecutor(min(len(draws), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda draw: draw(), draws))


@contextmanager
def philox_nodes() -> Iterator[None]:
    """Let torchsde draw by `Philox` inside the context; it has no option for that."""
    from torchsde._brownian import brownian_interval as module

    def draw(size: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
        return Philox(int(seed)).normal(size).to(device, dtype)

    usual = module._randn
    module._randn = draw
    try:
        yield
    finally:
        module._randn = usual


def slerp(share: float, noise: Tensor, other: Tensor) -> Tensor:
    """Interpolate two images' noise along an arc: `share` 0 is `noise`, 1 is `other`.

    Each column of a channel, along dimension 1 of (c, h, w), is rotated by itself. Where the two
    are nearly the same, A1111 mixes them with swapped shares; so does this.
    """
    unit, other_unit = (one / one.norm(dim=1, keepdim=True) for one in (noise, other))
    cosine = (unit * other_unit).sum(1)
    if cosine.mean() > 0.9995:
        return noise * share + other * (1 - share)
    angle = cosine.acos()
    first = ((1 - share) * angle).sin() / angle.sin()
    second = (share * angle).sin() / angle.sin()
    return first.unsqueeze(1) * noise + second.unsqueeze(1) * other


def paste_centred(patch: Tensor, ground: Tensor) -> Tensor:
    """Paste `patch` (c, h', w') into the middle of `ground` (c, h, w), cropped if it is larger.

    A larger patch loses (h' - h + 1) // 2 rows at the top and twice as many in all, as in A1111:
    if the difference is odd, one row less than fits is pasted.
    """
    places: list[tuple[slice, slice]] = []
    for size, space in zip(patch.shape[1:], ground.shape[1:], strict=True):
        offset = (space - size) // 2  # rounded down, also below 0
        length = size + 2 * min(offset, 0)
        target, origin = max(offset, 0), max(-offset, 0)
        places.append((slice(target, target + length), slice(origin, origin + length)))
    (rows, from_rows), (columns, from_columns) = places
    ground = ground.clone()
    ground[:, rows, columns] = patch[:, from_rows, from_columns]
    return ground
