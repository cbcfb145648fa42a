"""The chunks of a clip, and what processes exchange of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference.parallel import (
    ImaginedRing,
    Pass,
    Ring,
    brought_to_first,
    chunk_bounds,
    chunks_of,
    joined_frames,
)
from tests.inference.parallel.threads import in_ring


def chunks_in_diffusers(length: int, size: int) -> list[tuple[int, int]]:
    """The loop of `AutoencoderKLCogVideoX._encode` and `._decode`, word for word."""
    found = []
    for i in range(max(length // size, 1)):
        remaining_frames = length % size
        start_frame = size * i + (0 if i == 0 else remaining_frames)
        end_frame = size * (i + 1) + remaining_frames
        found.append((start_frame, min(end_frame, length)))
    return found


@pytest.mark.parametrize("size", [1, 2, 8])
def test_borders_are_those_of_diffusers(size: int):
    for length in range(1, 60):
        assert chunk_bounds(length, size) == chunks_in_diffusers(length, size)


def test_every_chunk_has_one_process():
    for size in range(1, 6):
        for chunks in range(1, 14):
            parts = [chunks_of(place, size, chunks) for place in range(size)]
            assert sorted(chunk for part in parts for chunk in part) == list(range(chunks))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def convolved(ring: Ring, clip: Tensor, size: int, kernels: list[Tensor]) -> Tensor:
    """Return this process's chunks after causal convolutions along time."""
    bounds = chunk_bounds(clip.shape[2], size)
    turn, found = Pass(ring, len(bounds)), []
    for start, end in bounds:
        if not turn.advance():
            continue
        x = clip[:, :, start:end]
        for kernel in kernels:
            frames = len(kernel) - 1
            before = turn.halo(x, frames)
            before = x[:, :, :1].expand(-1, -1, frames, -1, -1) if before is None else before
            seen = torch.cat([before, x], dim=2)
            x = sum(seen[:, :, k : k + x.shape[2]] * w for k, w in enumerate(kernel)) + 0 * x
        found.append(x)
    return torch.cat(found, dim=2) if found else clip[:, :, :0]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("frames", "chunk"), [(1, 2), (7, 2), (12, 3), (9, 1), (5, 8), (41, 4)])
def test_convolutions_see_the_frames_before_their_chunk(frames: int, chunk: int, size: int):
    """Also those that reach back beyond the chunk before."""
    random = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 2, frames, 2, 2, generator=random, dtype=torch.float64)
    kernels = [torch.randn(count, generator=random, dtype=torch.float64) for count in (3, 4, 2)]
    whole = clip
    for kernel in kernels:
        padded = torch.cat([whole[:, :, :1]] * (len(kernel) - 1) + [whole], dim=2)
        whole = torch.stack([padded[:, :, k : k + frames] * w for k, w in enumerate(kernel)]).sum(0)
    lengths = [end - start for start, end in chunk_bounds(frames, chunk)]

    def work(ring: Ring) -> Tensor:
        return joined_frames(ring, convolved(ring, clip, chunk, kernels), lengths, 2)

    for found in in_ring(size, work):
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_the_first_process_gets_all_frames_in_order():
    lengths, size = [5, 4, 4, 4, 4], 3
    frames = torch.arange(sum(lengths) * 6, dtype=torch.uint8).view(-1, 2, 3)

    def work(ring: Ring) -> Tensor | None:
        own = [frames.split(lengths)[chunk] for chunk in chunks_of(ring.place, size, len(lengths))]
        return brought_to_first(ring, torch.cat(own), lengths, torch.device("cpu"))

    first, *others = in_ring(size, work)
    assert first is not None
    assert torch.equal(first, frames)
    assert others == [None, None]


def test_an_imagined_process_counts_what_it_sends():
    ring = ImaginedRing(size=2, place=1)
    convolved(ring, torch.zeros(1, 2, 12, 2, 2), 2, [torch.ones(3)] * 2)
    assert ring.sent == 2 * 2 * (2 * 2 * 2 * 2 * 4)  # chunks 1 and 3; two halos of two frames
