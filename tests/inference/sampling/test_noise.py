"""Noise by seed: A1111's sources, variations and sizes; Brownian paths."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch

from inference.runtime.errors import InputError
from inference.sampling.noise import (
    NoiseSource,
    Philox,
    SeedVariation,
    paste_centred,
    philox4x32,
    slerp,
)

SHAPE = (4, 8, 8)


def drawn(seed, *shapes):
    """The first draws of a generator on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_noise_is_that_of_a_generator_on_the_cpu():
    first, second = drawn(5, SHAPE, SHAPE)
    noise = NoiseSource([5, 6], SHAPE)
    assert torch.equal(noise.normal()[0], first)
    assert torch.equal(noise.normal()[0], second)


def test_philox_is_the_published_one():
    # Known answers of Random123 (kat_vectors, philox4x32-10).
    ones = 0xFFFFFFFF
    for counter, key, answer in [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ]:
        words = philox4x32([np.array([word], dtype=np.uint64) for word in counter], key)
        assert tuple(int(word[0]) for word in words) == answer


def test_nv_noise_is_a1111s():
    row = [-0.92466259, -0.42534415, -2.6438457, 0.14518388]
    philox = Philox(0)
    first, second = philox.normal((3, 4)), philox.normal((3, 4))
    assert first.dtype == torch.float32
    assert first[0].tolist() == pytest.approx(row, abs=1e-6)
    assert not torch.equal(first, second)
    assert torch.equal(Philox(0).normal((12,)), first.flatten())
    many = Philox(2**63 - 1).normal((100, 1000))
    assert (many.mean().item(), many.std().item()) == pytest.approx((0, 1), abs=0.01)
    noise = NoiseSource([7, 0], (1, 3, 4), source="NV")
    assert torch.equal(noise.normal()[1, 0], first)
    assert torch.equal(noise.normal()[1, 0], second)


def test_gpu_noise_is_the_cpus_without_a_gpu():
    assert torch.equal(
        NoiseSource([3], SHAPE, "cpu", source="GPU").normal(), NoiseSource([3], SHAPE).normal()
    )


def test_ensd_begins_anew_after_the_first_draw():
    noise = NoiseSource([5], SHAPE, ensd=31337)
    first, second, third = noise.normal(), noise.normal(), noise.normal()
    assert torch.equal(first[0], drawn(5, SHAPE)[0])
    assert torch.equal(torch.cat([second, third]), torch.stack(drawn(5 + 31337, SHAPE, SHAPE)))


def test_slerp_turns_columns():
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 6, 5).double()
    assert torch.equal(slerp(0.0, one, other), one)
    torch.testing.assert_close(slerp(1.0, one, other), other)
    unit, other_unit = (value / value.norm(dim=1, keepdim=True) for value in (one, other))
    halfway = slerp(0.5, unit, other_unit)  # an arc's middle is the sum's direction
    middle = unit + other_unit
    torch.testing.assert_close(halfway, middle / middle.norm(dim=1, keepdim=True))
    orthogonal = slerp(1 / 3, torch.eye(2)[None, :, :1], torch.eye(2)[None, :, 1:])
    assert orthogonal.flatten().tolist() == pytest.approx([math.cos(math.pi / 6), 0.5])


def test_slerp_of_the_same_noise_has_its_shares_swapped():
    one = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(0.25, one, one * 3), one * 0.25 + one * 3 * 0.75)


def test_variation_mixes_the_first_noise_alone():
    noise = NoiseSource([5, 5], SHAPE, variation=SeedVariation([8, 9], 0.3))
    (first, second), (other,) = drawn(5, SHAPE, SHAPE), drawn(9, SHAPE)
    assert torch.equal(noise.normal()[1], slerp(0.3, first, other))
    assert torch.equal(noise.normal()[1], second)
    plain = NoiseSource([5], SHAPE, variation=SeedVariation([9]))
    assert torch.equal(plain.normal()[0], first)


@pytest.mark.parametrize(
    ("size", "space", "target", "origin"),
    [
        (4, 8, slice(2, 6), slice(0, 4)),
        (5, 8, slice(1, 6), slice(0, 5)),  # the odd row is left free at the end
        (12, 8, slice(0, 8), slice(2, 10)),
        (11, 8, slice(0, 7), slice(2, 9)),  # A1111 loses one row more
        (8, 8, slice(0, 8), slice(0, 8)),
    ],
)
def test_pasting_is_centred(size, space, target, origin):
    patch, ground = torch.rand(1, size, 8) + 1, torch.zeros(1, space, 8)
    expected = ground.clone()
    expected[:, target] = patch[:, origin]
    assert torch.equal(paste_centred(patch, ground), expected)
    assert torch.equal(paste_centred(patch.mT, ground.mT), expected.mT)


def test_seed_resize_lays_the_other_sizes_noise_into_its_own():
    small = (4, 4, 6)
    noise = NoiseSource([5], SHAPE, variation=SeedVariation(resize_from=small[1:]))
    (patch,), (ground, later) = drawn(5, small), drawn(5, SHAPE, SHAPE)
    assert torch.equal(noise.normal()[0], paste_centred(patch, ground))
    assert torch.equal(noise.normal()[0], later)
    same = NoiseSource([5], SHAPE, variation=SeedVariation(resize_from=SHAPE[1:]))
    assert torch.equal(same.normal()[0], ground)
    assert torch.equal(same.normal()[0], later)
    varied = NoiseSource([5], SHAPE, variation=SeedVariation([9], 0.4, small[1:]))
    mixed = slerp(0.4, patch, drawn(9, small)[0])
    assert torch.equal(varied.normal()[0], paste_centred(mixed, ground))


@pytest.mark.parametrize("source", ["CPU", "GPU", "NV"])
def test_batches_are_their_pictures(source):
    def noise_of(seeds, subseeds):
        variation = SeedVariation(subseeds, 0.2, (6, 10))
        return NoiseSource(seeds, SHAPE, source=source, variation=variation, ensd=3)

    together, alone = noise_of([5, 6, 7], [1, 2, 3]), noise_of([6], [2])
    for _ in range(3):
        assert torch.equal(together.normal()[1:2], alone.normal())
    with torch.inference_mode():  # which does not hold in the threads that draw several paths
        way, own = together.brownian(0.03, 14.6), alone.brownian(0.03, 14.6)
        assert torch.equal(way(5.0, 3.0)[1:2], own(5.0, 3.0))


def test_brownian_noise_is_a_path():
    way = NoiseSource([3], (4, 64, 64)).brownian(0.03, 14.6)
    parts = way(10.0, 6.0) * math.sqrt(4), way(6.0, 3.0) * math.sqrt(3)
    torch.testing.assert_close(sum(parts), way(10.0, 3.0) * math.sqrt(7), rtol=0, atol=1e-4)
    assert way(10.0, 6.0).std().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(way(6.0, 10.0), -way(10.0, 6.0))
    other = NoiseSource([4, 3], (4, 64, 64)).brownian(0.03, 14.6)(10.0, 6.0)
    assert torch.equal(other[1:], way(10.0, 6.0))


def test_part_of_a_schedule_keeps_the_whole_ones_path():
    whole = NoiseSource([3], SHAPE).brownian(0.03, 14.6)
    part = NoiseSource([3], SHAPE, brownian_range=(0.03, 14.6)).brownian(0.03, 6.0)
    assert torch.equal(part(5.0, 3.0), whole(5.0, 3.0))
    shorter = NoiseSource([3], SHAPE).brownian(0.03, 6.0)
    assert not torch.equal(shorter(5.0, 3.0), whole(5.0, 3.0))


def test_brownian_paths_follow_the_source():
    from torchsde._brownian import brownian_interval

    usual = brownian_interval._randn
    way = NoiseSource([3], (4, 32, 32), source="NV").brownian(0.03, 14.6)
    noise = way(10.0, 6.0)
    assert brownian_interval._randn is usual
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(noise, NoiseSource([3], (4, 32, 32)).brownian(0.03, 14.6)(10.0, 6.0))
    torch.testing.assert_close(way(10.0, 6.0), noise)


def test_wrong_options_are_refused():
    with pytest.raises(InputError, match="RNG source: expected one of CPU, GPU, NV"):
        NoiseSource([1], SHAPE, source=cast(Any, "TPU"))
    with pytest.raises(InputError, match="variation strength"):
        SeedVariation([2], 1.5)
    with pytest.raises(ValueError, match="one subseed for each seed"):
        NoiseSource([1, 2], SHAPE, variation=SeedVariation([2], 0.5))
