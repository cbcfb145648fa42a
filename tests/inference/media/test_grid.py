"""Grids: whole cells, readable labels."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from inference.config.images import ImageConfig
from inference.images.drawing import Drawing
from inference.images.infotext.reading import read_infotext
from inference.media.grid import grid_cells, image_grid, save_grid, text_width, wrap

FONT = ImageFont.load_default(14)


def noise(seed, width=64, height=64):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(one, two):
    return np.array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.parametrize("size", [64, 16, 100, 130, 512])
def test_cells_are_cut_out_as_they_were_put_in(tmp_path, size):
    rows = [[noise(10 * row + column, size, size) for column in range(3)] for row in range(2)]
    grid = image_grid(rows, ["base", "step 500"], ["a cat", "a dog", "a very long prompt " * 9])
    save_grid(tmp_path / "grid.png", grid)
    for seen in (grid, Image.open(tmp_path / "grid.png")):
        cells = grid_cells(seen)
        assert [len(row) for row in cells] == [3, 3]
        assert all(
            same(cell, put)
            for row, puts in zip(cells, rows, strict=True)
            for cell, put in zip(row, puts, strict=True)
        )


@pytest.mark.parametrize(("size", "scale"), [(16, 8), (64, 2), (100, 2), (128, 1), (512, 1)])
def test_small_pictures_are_enlarged_by_whole_pixels(size, scale):
    cell = noise(1, size, size)
    grid = image_grid([[cell]])
    assert grid.size == (size * scale + 12, size * scale + 12)
    inner = grid.crop((6, 6, 6 + size * scale, 6 + size * scale))
    assert same(inner, cell.resize(inner.size, Image.Resampling.NEAREST))
    assert image_grid([[cell]], scale=1).size == (size + 12, size + 12)


def test_rows_and_pictures_may_differ_in_size():
    rows = [[noise(1, 64, 32), noise(2, 32, 64)], [noise(3)]]
    cells = grid_cells(image_grid(rows, ["one", "two"]))
    assert [[cell.size for cell in row] for row in cells] == [[(64, 32), (32, 64)], [(64, 64)]]
    assert same(cells[1][0], rows[1][0])


def test_cells_do_not_touch_each_other_or_labels():
    black = Image.new("RGB", (64, 64), "red")
    grid = image_grid([[black] * 3] * 2, ["row " * 40] * 2, ["column " * 40] * 3)
    red = (np.asarray(grid) == (255, 0, 0)).all(-1)
    assert red.sum() == 6 * 128 * 128  # no label is written over a cell
    dark = np.all(np.asarray(grid) < 100, axis=-1)
    assert dark[:, :128].any()  # row labels
    assert dark[:20].any()  # column labels


def test_every_row_can_have_its_own_labels_above():
    plain = image_grid([[noise(1)] * 2, [noise(1)]])
    labelled = image_grid([[noise(1)] * 2, [noise(1)]], column_labels=[["one", "two"], ["three"]])
    assert labelled.width == plain.width
    assert labelled.height > image_grid([[noise(1)] * 2, [noise(1)]], (), ["one", "two"]).height


def test_labels_are_broken_between_words():
    assert wrap("a cat", FONT, 500, 4) == "a cat"
    broken = wrap("a cat on a mat with a hat and a bat", FONT, 80, 9)
    assert broken.count("\n") > 1
    assert broken.split() == ["a", "cat", "on", "a", "mat", "with", "a", "hat", "and", "a", "bat"]
    assert text_width(broken, FONT) <= 80


@pytest.mark.parametrize("label", ["word " * 50, "x" * 300, "絵" * 200])
def test_long_labels_are_shortened(label):
    short = wrap(label, FONT, 100, 4)
    assert short.count("\n") == 3
    assert short.endswith("…")
    assert text_width(short, FONT) <= 100


def test_empty_labels():
    assert wrap("", FONT, 100, 4) == ""
    assert image_grid([[noise(1)]], [""], [""]).size > image_grid([[noise(1)]]).size


def test_infotext_of_all_cells_is_in_the_file(tmp_path):
    request = ImageConfig(prompt="a")
    drawings = [Drawing(noise(n), request, f"a\nSteps: {n}, Seed: 1") for n in (1, 2)]
    grid = image_grid([[drawing.image for drawing in drawings]])
    save_grid(tmp_path / "deep" / "grid.png", grid, [drawing.infotext for drawing in drawings])
    text = read_infotext(tmp_path / "deep" / "grid.png")
    assert text == "a\nSteps: 1, Seed: 1\n\na\nSteps: 2, Seed: 1"


def test_wrong_input():
    with pytest.raises(ValueError, match="at least one picture"):
        image_grid([[]])
    with pytest.raises(ValueError, match="3 row labels for 1 rows"):
        image_grid([[noise(1)]], ["a", "b", "c"])
    with pytest.raises(ValueError, match="not a grid"):
        grid_cells(noise(1))
