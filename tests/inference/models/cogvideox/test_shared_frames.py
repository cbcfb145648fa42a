"""A clip that several processes encode and decode together equals that of one process.

Here the processes are threads; tests/inference/parallel/test_ranks.py has real ones.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.memory import decoding_measured, enable_tiles, encoding_measured, on_meta
from inference.models.cogvideox.shared_frames import SharedFrames
from inference.parallel import ImaginedRing, Ring
from tests.inference.models.cogvideox.models import make_video_model
from tests.inference.models.cogvideox.tiny import tiny_vae
from tests.inference.parallel.threads import in_ring

CPU = torch.device("cpu")


@cache
def vae(ratio: int = 4) -> Any:
    made = tiny_vae(temporal_compression_ratio=ratio)
    made.requires_grad_(False)
    return made


def clip(frames: int, side: int = 16, rows: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(frames)
    return torch.rand(rows, 3, frames, side, side, generator=random) * 2 - 1


def encoded(model: Any, pixels: Tensor, size: int) -> list[Tensor]:
    """Return the moments of each process of a ring."""

    def work(ring: Ring) -> Tensor:
        own = copy.deepcopy(model)
        with torch.no_grad(), SharedFrames(own, ring, CPU).at_work():
            return own.encode(pixels).latent_dist.parameters

    return in_ring(size, work)


def frames_of(model: Any, z: Tensor) -> np.ndarray:
    """Return all rows' frames beside each other, (f, h, rows x w, 3)."""
    return model.decode(z).sample.float().permute(2, 3, 0, 4, 1).flatten(2, 3).numpy()


def decoded(model: Any, z: Tensor, size: int) -> list[np.ndarray]:
    """Return the frames that each process of a ring gets."""

    def work(ring: Ring) -> np.ndarray:
        own = copy.deepcopy(model)
        shared = SharedFrames(own, ring, CPU)
        with torch.no_grad(), shared.at_work():
            return shared.to_first(lambda: frames_of(own, z), z.shape[2])

    return in_ring(size, work)


def check_parts(model: Any, pixels: Tensor, size: int) -> None:
    """Check that encoding and decoding together give the same bytes as alone."""
    with torch.no_grad():
        moments = model.encode(pixels).latent_dist.parameters
        z = moments.chunk(2, dim=1)[0]
        whole = frames_of(model, z)
    for found in encoded(model, pixels, size):
        assert torch.equal(found, moments)
    first, *others = decoded(model, z, size)
    np.testing.assert_array_equal(first, whole)
    assert all(one.shape == (0, *whole.shape[1:]) for one in others)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("frames", "size"),
    [
        (1, 2),
        (17, 4),
        (25, 2),
        *(
            pytest.param(frames, size, marks=slow)
            for frames in (5, 8, 9, 13, 16, 24, 32, 33, 49, 81)
            for size in (2, 3, 4)
        ),
    ],
)
def test_parts_equal_the_whole(frames: int, size: int):
    check_parts(vae(), clip(frames), size)


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=slow)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=slow)])
def test_tiles_and_slices_are_shared_alike(dtype: torch.dtype, rows: int):
    model = copy.deepcopy(vae()).to(dtype)
    model.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
    enable_tiles(model)
    model.enable_slicing()
    check_parts(model, clip(17, 40, rows).to(dtype), 2)


@slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype):
    check_parts(copy.deepcopy(vae()).to(dtype), clip(25, rows=2).to(dtype), 3)


@slow
def test_chunks_shorter_than_a_halo():
    """At a ratio of 8, the innermost convolutions read one frame of a chunk, and three in all."""
    check_parts(vae(8), clip(33, 32), 3)


def test_processes_without_a_fault_learn_of_one():
    z = torch.randn(1, 4, 5, 2, 2)

    def work(ring: Ring) -> str:
        own = copy.deepcopy(vae())
        shared = SharedFrames(own, ring, CPU)

        def decode() -> np.ndarray:
            frames = frames_of(own, z)
            if ring.place == 1:
                raise FloatingPointError("the clip is not finite")
            return frames

        with torch.no_grad(), shared.at_work(), pytest.raises(FloatingPointError) as fault:
            shared.to_first(decode, 5)
        return str(fault.value)

    assert in_ring(2, work) == [
        "the part of the clip in another process is not finite",
        "the clip is not finite",
    ]


def test_the_vae_is_as_before_afterwards():
    model, pixels = copy.deepcopy(vae()), clip(17)
    names = set(vars(model)), set(vars(model.encoder)), set(vars(model.decoder))
    with SharedFrames(model, ImaginedRing(2), CPU).at_work():
        assert model.sharers == (0, 2)
    assert (set(vars(model)), set(vars(model.encoder)), set(vars(model.decoder))) == names
    with torch.no_grad():
        assert torch.equal(model.encode(pixels)[0].mean, vae().encode(pixels)[0].mean)


def test_a_trained_vae_is_refused():
    model = tiny_vae()
    with (
        SharedFrames(model, ImaginedRing(2), CPU).at_work(),
        pytest.raises(NotImplementedError, match="cannot be trained"),
    ):
        model.encode(clip(17))


def test_a_part_takes_less_memory():
    """As it is planned: the first process holds halos, the others only their chunk."""
    base = make_video_model()
    alone, first, second = {}, {}, {}
    with on_meta(*base.parts.values()), torch.no_grad():
        for found, ring in ((alone, None), (first, ImaginedRing(2)), (second, ImaginedRing(2, 1))):
            with base.frames_shared(ring):
                found["encoding"] = encoding_measured(base, 1, (33, 64, 64)).bytes
                found["decoding"] = decoding_measured(base, (1, 9, 4, 8, 8)).bytes
    for phase, whole in alone.items():
        assert second[phase] < first[phase] < whole
