"""A clip that several processes encode and decode together equals that of one process."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.models.cogvideox.shared_frames import SharedFrames
from inference.parallel import Ring
from tests.inference.models.cogvideox.tiny import tiny_vae
from tests.inference.parallel.threads import in_ring

CPU = torch.device("cpu")


@cache
def vae() -> Any:
    made = tiny_vae()
    made.requires_grad_(False)
    return made


def clip(frames: int, size: int = 16, rows: int = 1) -> Tensor:
    return torch.rand(rows, 3, frames, size, size, generator=torch.Generator().manual_seed(frames))


def latents(frames: int, size: int = 2, rows: int = 1) -> Tensor:
    return torch.randn(rows, 4, frames, size, size, generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def encoded(model: Any, pixels: Tensor, size: int) -> list[Tensor]:
    def work(ring: Ring) -> Tensor:
        own = copy.deepcopy(model)
        with torch.no_grad(), SharedFrames(own, ring, CPU).at_work():
            return own.encode(pixels).latent_dist.parameters

    return in_ring(size, work)


def decoded(model: Any, z: Tensor, size: int) -> list[np.ndarray]:
    def work(ring: Ring) -> np.ndarray:
        own = copy.deepcopy(model)
        shared = SharedFrames(own, ring, CPU)

        def frames() -> np.ndarray:
            return own.decode(z).sample[0].permute(1, 2, 3, 0).numpy()

        with torch.no_grad(), shared.at_work():
            return shared.to_first(frames, z.shape[2])

    return in_ring(size, work)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("frames", [1, 5, 8, 9, 13, 17, 32, 49])
def test_parts_equal_the_whole(frames: int, size: int):
    pixels = clip(frames)
    with torch.no_grad():
        moments = vae().encode(pixels).latent_dist.parameters
    for found in encoded(vae(), pixels, size):
        assert torch.equal(found, moments)
    z = moments[:, :4]
    with torch.no_grad():
        whole = vae().decode(z).sample[0].permute(1, 2, 3, 0).numpy()
    first, *others = decoded(vae(), z, size)
    np.testing.assert_array_equal(first, whole)
    assert all(len(one) == 0 for one in others)
