"""Aspect-ratio buckets against numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from inference.runtime.errors import InputError
from train.common.errors import DataError
from train.config.examples import PictureBucketsConfig, Size, parse_size
from train.data.examples.picture_buckets import SDXL_SIZES, Place, SizeRule, kohya_sizes


def rule(resolution: int = 512, step: int = 8, **options: Any) -> SizeRule:
    made = SizeRule(PictureBucketsConfig(**options), resolution, step)
    made.check()
    return made


def test_sizes_of_kohya() -> None:
    """For 512: from 256 x 1024 on, the other side is 262144 / side, down to a multiple of 64."""
    narrow = [
        "256x832",
        "256x896",
        "256x960",
        "256x1024",
        "320x704",
        "320x768",
        "384x640",
        "448x576",
    ]
    sizes = [parse_size(text) for text in narrow]
    expected = {*sizes, *(Size(size.width, size.height) for size in sizes), Size(512, 512)}
    assert kohya_sizes(512**2, 256, 1024, 64) == sorted(expected)
    assert rule().sizes == sorted(expected, key=lambda size: (size.width, size.height))


def test_sides_are_brought_to_multiples() -> None:
    assert kohya_sizes(512**2, 300, 1000, 64) == kohya_sizes(512**2, 256, 1024, 64)


def test_area_may_be_no_square() -> None:
    """512 x 768: the square is of 627 pixels, down to 576; 512 is met by 768."""
    sizes = kohya_sizes(512 * 768, 256, 1024, 64)
    assert Size(576, 576) in sizes
    assert Size(512, 768) in sizes
    assert rule(area=512 * 768).sizes == sorted(sizes, key=lambda size: (size.width, size.height))


def test_sizes_of_sdxl() -> None:
    assert len({*SDXL_SIZES}) == 40
    assert sum(size.height < size.width for size in SDXL_SIZES) == 20
    assert Size(704, 1344) in SDXL_SIZES
    assert Size(1344, 704) not in SDXL_SIZES  # nor is it in the paper
    assert all(not (side % 64) for size in SDXL_SIZES for side in size)
    assert {size.height * size.width for size in SDXL_SIZES} <= {*range(896 * 1024, 1049 * 1024)}


PLACES = {
    # 5:3 is a size of its own; nothing is cut off.
    (1000, 600): Place(Size(384, 640), Size(384, 640)),
    # 1.333 is nearer to 576/448 = 1.286 than to 640/384 = 1.667; 448/600 of 800 are 597.3.
    (800, 600): Place(Size(448, 576), Size(448, 597)),
    (600, 800): Place(Size(576, 448), Size(597, 448)),
    (90, 90): Place(Size(512, 512), Size(512, 512)),
    # Sizes that there are stay what they are, though 256x1024 is as near to 4:1.
    (1024, 256): Place(Size(256, 1024), Size(256, 1024)),
    (4000, 100): Place(Size(256, 1024), Size(256, 10240)),
}


@pytest.mark.parametrize("size", PLACES)
def test_choice_of_kohya(size: tuple[int, int]) -> None:
    assert rule().place(*size) == PLACES[size]


def test_of_equally_near_sizes_the_narrower_is_taken() -> None:
    """1.5 lies in the middle of 1 and 2; kohya's list is sorted by width."""
    assert rule(sizes=["256x512", "256x256"]).place(300, 200).size == Size(256, 256)


NO_UPSCALE = {
    # 661 x 396.6: both ways give 640 x 384.
    (1000, 600): Place(Size(384, 640), Size(384, 640)),
    # 591.2 x 443.4: 576 wide it would be 384 high (1.5), 384 high it is 512 wide (1.333).
    (800, 600): Place(Size(384, 512), Size(384, 512)),
    # Small ones stay as they are, cut to multiples.
    (500, 300): Place(Size(256, 448), Size(300, 500)),
    (512, 512): Place(Size(512, 512), Size(512, 512)),
    # 1034.4 x 253.4: 1024 x 192 (5.33) or 192 x 768 (4): so high, it is 783.7 wide.
    (2449, 600): Place(Size(192, 768), Size(192, 784)),
}


@pytest.mark.parametrize("size", NO_UPSCALE)
def test_no_upscale_of_kohya(size: tuple[int, int]) -> None:
    assert rule(no_upscale=True).place(*size) == NO_UPSCALE[size]


def test_too_small_for_a_step() -> None:
    with pytest.raises(DataError, match="no_upscale a picture of 63x300 is smaller than 64x64"):
        rule(no_upscale=True).place(63, 300)


def test_own_size() -> None:
    own = SizeRule(None, 512, 8)
    own.check()
    assert own.place(103, 64) == Place(Size(64, 96), Size(64, 103))
    with pytest.raises(DataError, match="own_size a picture of 7x64 is smaller than 8x8"):
        own.place(7, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ["64x100"]}, r"data\.buckets: 64x100: 100 pixels"),
        ({"min_side": 768, "max_side": 1024, "area": 4000}, "no size of 4000 pixels"),
    ],
)
def test_what_the_model_cannot_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(**options)


def test_steps_the_model_cannot_take() -> None:
    with pytest.raises(InputError, match=r"data\.buckets\.step: 12 pixels"):
        SizeRule(PictureBucketsConfig(step=12), 512, 8).check()


FAULTS = {
    ("sizes", "excludes preset"): {"sizes": ["64x64"], "preset": "sdxl"},
    ("sizes", "'64' is not a size"): {"sizes": ["64"]},
    ("sizes", "twice"): {"sizes": ["64x64", "64X64"]},
    ("no_upscale", "no list of sizes"): {"no_upscale": True, "preset": "sdxl"},
    ("max_side", "at least min_side 256"): {"max_side": 128},
    ("step", "at least 1"): {"step": 0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_recipes_that_are_refused(fault: tuple[str, str]) -> None:
    reported = list(PictureBucketsConfig(**FAULTS[fault]).faults())
    assert any(key == fault[0] and fault[1] in text for key, text in reported), reported


def test_options_without_effect() -> None:
    config = PictureBucketsConfig(min_side=64, step=32, area=9)
    assert list(config.idle()) == []
    assert [key for key, _ in replace(config, preset="sdxl").idle()] == ["min_side", "area", "step"]
    assert [key for key, _ in replace(config, no_upscale=True).idle()] == ["min_side"]
