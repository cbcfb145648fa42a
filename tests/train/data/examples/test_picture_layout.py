"""Pictures of several sizes in a run: pixels, size conditions, batches, class pictures."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_recipe
from inference.runtime.errors import InputError
from train.common.errors import DataError
from train.config.data import DataConfig
from train.config.examples import ColorJitterConfig, PictureBucketsConfig, Size
from train.config.schema import train_schema
from train.data.examples.examples import Examples
from train.data.examples.loader import collate
from train.data.examples.picture_buckets import Place
from train.data.examples.stream import BucketStream
from train.data.examples.transforms import crop_image, jittered, turned
from train.data.sources.folder import Picture

SMALL = PictureBucketsConfig(min_side=16, max_side=64, step=8)
"""With a resolution of 32: 16x64, 24x40, 32x32 and so on."""


def ramp(path: Path, width: int, height: int) -> Path:
    """Red is the column, green the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    array = np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)
    Image.fromarray(array).save(path)
    return path


def examples(
    folder: Path, sizes: list[tuple[int, int]], batch_size: int = 2, **options: Any
) -> Examples:
    """Pictures of these widths and heights."""
    paths = [ramp(folder / f"{n:02}.png", *size) for n, size in enumerate(sizes)]
    config = DataConfig(path=str(folder), **options)
    made = Examples([Picture(path, ("a",)) for path in paths], config, 32, 7)
    made.assign_buckets(8, batch_size)
    return made


def test_without_buckets_nothing_is_laid_out(tmp_path: Path) -> None:
    made = examples(tmp_path, [(40, 30)])
    assert made.layout is None
    assert not isinstance(made.stream, BucketStream)
    assert made.shape(0) == (32, 32)


def test_sizes_of_examples_and_what_sdxl_is_told(tmp_path: Path) -> None:
    """100 x 60 becomes 40 x 24 whole; 60 x 60 becomes 32 x 32; 60 x 16 is cut to 56 x 16."""
    made = examples(tmp_path, [(100, 60), (60, 60), (60, 16)], buckets=SMALL)
    assert [made.shape(index) for index in range(3)] == [(24, 40), (32, 32), (16, 56)]
    assert made.content(0)["pixels"].shape == (3, 24, 40)
    reported = [made.content(index)["sizes"].tolist() for index in range(3)]
    assert reported == [[60, 100, 0, 0, 24, 40], [60, 60, 0, 0, 32, 32], [16, 60, 0, 2, 16, 56]]
    assert torch.equal(  # nothing is scaled: the columns from 2 on
        made.content(2)["pixels"][0, 0], torch.arange(2, 58) / 127.5 - 1
    )


def test_micro_batches_are_of_one_size_and_every_picture_comes(tmp_path: Path) -> None:
    sizes = [(100, 60)] * 3 + [(60, 60)] * 5
    made = examples(tmp_path, sizes, buckets=SMALL)
    assert isinstance(made.stream, BucketStream)
    assert made.stream.repeated == 2
    for start in (0, 10):
        seen: Counter[int] = Counter()
        for first in range(start, start + 10, 2):
            batch = collate(made.__getitems__([first, first + 1]))
            assert isinstance(batch, dict)
            assert batch["pixels"].shape[2:] in ((24, 40), (32, 32))  # pyright: ignore
            seen.update(batch["indices"])
        assert {*seen} == {*range(8)}
        assert max(seen.values()) == 2


def test_own_sizes(tmp_path: Path) -> None:
    """Cut to multiples of 8 in the middle, and not scaled."""
    made = examples(tmp_path, [(45, 33), (20, 70)], resize="own_size")
    assert [made.shape(index) for index in range(2)] == [(32, 40), (64, 16)]
    content = made.content(0)
    assert content["sizes"].tolist() == [33, 45, 0, 2, 32, 40]
    assert torch.equal(content["pixels"][0, 0], torch.arange(2, 42) / 127.5 - 1)


def test_pictures_that_are_too_small_are_told_together(tmp_path: Path) -> None:
    sizes = [(40, 40), (4, 40), (40, 5)]
    with pytest.raises(DataError) as reported:
        examples(tmp_path, sizes, resize="own_size")
    first, *named = str(reported.value).splitlines()
    assert first == "2 of 3 pictures cannot be used:"
    assert [line.partition(": ")[0][-6:] for line in named] == ["01.png", "02.png"]


@pytest.mark.parametrize("num_class", [1, 5])
def test_class_pictures_come_at_the_size_of_their_batch(num_class: int, tmp_path: Path) -> None:
    """All of them are squares: the wide pictures borrow them."""
    made = examples(tmp_path, [(100, 60)] * 3 + [(60, 60)] * 4, buckets=SMALL)
    own = [ramp(tmp_path / f"class{n}.png", 40, 40) for n in range(num_class)]
    made.add_class_pictures([Picture(path, ("b",)) for path in own])
    seen: dict[Any, Counter[str]] = {}
    for first in range(0, 8 * 10, 2):
        positions = [first, first + 1, ~first, ~(first + 1)]
        batch: Any = collate(made.__getitems__(positions))
        assert batch["pixels"].shape[0] == 4
        shape = tuple(batch["pixels"].shape[2:])
        seen.setdefault(shape, Counter()).update(batch["names"][2:])
    assert {*seen} == {(24, 40), (32, 32)}
    for counts in seen.values():
        assert {*counts} == {str(path) for path in own}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_class_pictures_of_one_size(tmp_path: Path) -> None:
    made = examples(tmp_path, [(100, 60)] * 3, buckets=SMALL)
    made.add_class_pictures([Picture(ramp(tmp_path / "class.png", 40, 40), ("b",))])
    assert made[-1]["pixels"].shape == (3, 24, 40)


# ------------------------------------------------------------------------------------ resize modes


def cut(folder: Path, size: Size, width: int, height: int, **options: Any) -> torch.Tensor:
    path = ramp(folder / "a.png", width, height)
    config = DataConfig(path="", **options)
    piece = crop_image(path, config, Place(size), random.Random(0))
    return (piece.pixels + 1).mul(127.5).round()


def test_stretch_shows_all_of_the_picture(tmp_path: Path) -> None:
    shown = cut(tmp_path, Size(16, 8), 32, 16, resize="stretch", resize_interpolation="area")
    assert shown[0, 0].tolist() == [round(4 * column + 1.5) for column in range(8)]
    assert shown[1, :, 0].tolist() == list(range(16))


def test_fill_repeats_the_edges(tmp_path: Path) -> None:
    """20 x 10 fits into 20 x 16 with 3 rows above and below; of 21 x 10, A1111 puts 5 above."""
    shown = cut(tmp_path, Size(16, 20), 20, 10, resize="fill")
    assert shown[1, :, 0].tolist() == [0, 0, 0, *range(10), 9, 9, 9]
    assert shown[0, 0].tolist() == list(range(20))
    shown = cut(tmp_path, Size(21, 20), 20, 11, resize="fill")
    assert shown[1, :, 0].tolist() == [0] * 5 + [*range(11)] + [10] * 5


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear", "area", "nearest"])
def test_interpolations(name: str, tmp_path: Path) -> None:
    path = ramp(tmp_path / "a.png", 48, 48)
    expected = {"area": Image.Resampling.BOX}.get(name) or Image.Resampling[name.upper()]
    config = DataConfig(path="", resize_interpolation=name)  # pyright: ignore[reportArgumentType]
    seen = crop_image(path, config, Place(Size(32, 32)), random.Random(0)).pixels
    with Image.open(path) as image:
        wanted = np.asarray(image.resize((32, 32), expected))
    assert (seen + 1).mul(127.5).round().byte().permute(
        1, 2, 0
    ).numpy().tobytes() == wanted.tobytes()


# ------------------------------------------------------------------------------------------ colour


class Given(random.Random):
    """Draws what it is given."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def uniform(self, a: float, b: float) -> float:
        return self.values.pop(0)


PIXELS = np.array([[[100.0, 50.0, 200.0], [40.0, 40.0, 40.0]]])
JITTERS: dict[str, tuple[dict[str, float], tuple[float, ...], list[list[float]]]] = {
    "brightness": ({"brightness": 0.5}, (1, 0, 0, 0), [[150, 75, 255], [60, 60, 60]]),
    # Grey of the first is 29.9 + 29.35 + 22.8 = 82.05, mean 61.025.
    "contrast": ({"contrast": 1}, (0, -0.5, 0, 0), [[80.5, 55.5, 130.5], [50.5, 50.5, 50.5]]),
    "saturation": ({"saturation": 1}, (0, 0, -1, 0), [[82.05] * 3, [40] * 3]),
    # A third of the circle: red becomes green, green blue, blue red.
    "hue": ({"hue": 0.5}, (0, 0, 0, 2 / 3), [[200, 100, 50], [40, 40, 40]]),
}


@pytest.mark.parametrize("name", JITTERS)
def test_colours_change_by_what_is_drawn(name: str) -> None:
    amounts, drawn, expected = JITTERS[name]
    made = jittered(PIXELS, ColorJitterConfig(**amounts), Given(*drawn))
    assert made[0].tolist() == [pytest.approx(row, abs=0.05) for row in expected]


def test_a_whole_turn_changes_nothing() -> None:
    assert np.allclose(turned(PIXELS, 1.0), PIXELS)


def test_jitter_is_drawn_by_seed_epoch_and_picture(tmp_path: Path) -> None:
    options: dict[str, Any] = {"color_jitter": ColorJitterConfig(brightness=0.3, hue=0.1)}
    made = examples(tmp_path, [(32, 32)], **options)
    assert made.config.is_random
    first, again, later = (made.pixels(0, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    plain = examples(tmp_path, [(32, 32)], color_jitter=ColorJitterConfig())
    assert not plain.config.is_random
    assert torch.equal(plain.pixels(0, 0), examples(tmp_path, [(32, 32)]).pixels(0, 0))


# ------------------------------------------------------------------------------------------ recipe


WRONG = {
    "buckets: {}, resize: own_size": "data.resize: own_size excludes buckets",
    "buckets: {}, resize: none": "data.resize: none excludes buckets",
    "buckets: {}, clips: {}": "data.buckets: are for images",
    "resize: fill, clips: {}": "data.resize: fill is for images",
    "color_jitter: {hue: 0.6}": "data.color_jitter.hue: must be at most 0.5",
    "buckets: {sizes: [64x]}": "data.buckets.sizes: '64x' is not a size",
}


@pytest.mark.parametrize("reported", WRONG)
def test_recipes_that_are_refused(reported: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = f"name: a\nobjective: {{type: lora}}\ndata: {{path: x, {reported}}}\n"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, train_schema)
    assert WRONG[reported] in str(error.value)


def test_sizes_the_model_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.buckets\.step: 12 pixels"):
        examples(tmp_path, [(40, 40)], buckets=PictureBucketsConfig(step=12))
