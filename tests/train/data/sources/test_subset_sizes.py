"""Subsets of several resolutions: sizes, batches, pictures of classes, stages, and a run."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning
from inference.runtime.errors import InputError
from tests.train.data.sources.test_subsets import recipe_of
from train.config.recipe import TrainRecipe
from train.data.examples.examples import Examples
from train.data.examples.loader import collate
from train.data.examples.stream import BucketStream, Stream
from train.data.sources.sources import find_sources
from train.data.sources.subsets import at_resolution


def fill(folder: Path, count: int, size: tuple[int, int]) -> str:
    """So many pictures of this width and height, with captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (40 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{folder.name} {number}")
    return str(folder)


def examples_of(recipe: TrainRecipe, batch_size: int = 2) -> Examples:
    sources = find_sources(recipe)
    assert recipe.data.resolution is not None
    made = Examples(
        sources.pictures, recipe.data, recipe.data.resolution, 7, sources.template, sources.subsets
    )
    made.assign_buckets(8, batch_size)
    if sources.class_pictures:
        made.add_class_pictures(sources.class_pictures)
    return made


def test_each_subset_is_learned_at_its_resolution(tmp_path: Path) -> None:
    subsets: dict[str, Any] = {
        "small": {"path": fill(tmp_path / "small", 3, (40, 30))},
        "large": {"path": fill(tmp_path / "large", 4, (96, 64)), "resolution": 48},
        "wide": {
            "path": fill(tmp_path / "wide", 1, (96, 64)),
            "resolution": 48,
            "buckets": {"min_side": 16, "max_side": 64, "step": 8},
        },
        "class": {"path": fill(tmp_path / "class", 3, (20, 20)), "is_reg": True},
    }
    recipe = recipe_of(tmp_path, subsets, resolution=32)
    made = examples_of(recipe)
    shapes = [made.shape(index) for index in range(made.num_own)]
    assert shapes == [(32, 32)] * 3 + [(48, 48)] * 4 + [(40, 56)]
    # SDXL is conditioned on the file's size, the crop's position, and the example's size.
    assert made.content(0)["sizes"].tolist() == [30, 40, 0, 5, 32, 32]
    assert made.content(3)["sizes"].tolist() == [64, 96, 0, 12, 48, 48]
    assert made.origin(*made.of_row(3))["shape"] == [48, 48]
    assert isinstance(made.stream, BucketStream)
    assert (len(made.stream), made.stream.repeated) == (10, 2)
    seen, along = Counter[str](), dict[Any, Counter[str]]()
    for first in range(0, 60, 2):
        batch: Any = collate(made.__getitems__([first, first + 1, ~first, ~(first + 1)]))
        shape = tuple(batch["pixels"].shape[2:])
        for index in batch["indices"][:2]:
            assert shapes[index] == shape
            seen[made.subset(index).name] += 1
        along.setdefault(shape, Counter()).update(batch["names"][2:])
    assert seen == {"small": 4 * 6, "large": 4 * 6, "wide": 2 * 6}
    for counts in along.values():  # every class picture, at every size, in turn
        assert len(counts) == 3 and max(counts.values()) - min(counts.values()) <= 1


def test_class_pictures_find_the_nearest_proportions_of_each_resolution(tmp_path: Path) -> None:
    """Nearest to 1.4 = width / height are 56 x 40, and of the other resolution 40 x 24."""
    buckets = {"min_side": 8, "max_side": 96, "step": 8}
    subsets: dict[str, Any] = {
        "a": {"path": fill(tmp_path / "a", 2, (96, 60))},
        "b": {"path": fill(tmp_path / "b", 2, (60, 60))},
        "c": {"path": fill(tmp_path / "c", 2, (84, 60)), "resolution": 48},
        "class": {"path": fill(tmp_path / "class", 1, (84, 60)), "is_reg": True},
    }
    made = examples_of(recipe_of(tmp_path, subsets, resolution=32, buckets=buckets))
    assert [made.shape(index) for index in (0, 2, 4)] == [(24, 40), (32, 32), (40, 56)]
    # Once at each resolution, and once borrowed by the square, to which it is not near.
    assert [made.shape(index) for index in range(6, len(made))] == [(24, 40), (32, 32), (40, 56)]


def test_one_resolution_for_all_needs_no_buckets(tmp_path: Path) -> None:
    """Also where it is another than the run's, which no picture has then."""
    own = {"path": fill(tmp_path / "a", 3, (40, 30)), "resolution": 24}
    made = examples_of(recipe_of(tmp_path, {"a": own}, resolution=32))
    assert isinstance(made.stream, Stream) and made.shape(0) == (24, 24)
    inherited = {"path": str(tmp_path / "a")}
    made = examples_of(recipe_of(tmp_path, {"a": inherited}, resolution=32))
    assert made.layout is None and made.shape(0) == (32, 32)


def test_masks_have_the_size_of_their_picture(tmp_path: Path) -> None:
    subsets: dict[str, Any] = {
        "a": {"path": fill(tmp_path / "a", 1, (40, 40))},
        "b": {"path": fill(tmp_path / "b", 1, (64, 64)), "resolution": 48},
    }
    for name in subsets:
        mask = Image.new("L", (8, 8), 255)
        mask.paste(0, (0, 0, 4, 8))
        mask.save(tmp_path / name / "0-masklabel.png")
    made = examples_of(recipe_of(tmp_path, subsets, resolution=32, masks={}), 1)
    masks = [made.content(index)["mask"] for index in range(2)]
    assert [mask.shape[-2:] for mask in masks] == [(4, 4), (6, 6)]
    assert all(torch.equal(mask[..., 0, :].round(), mask[..., -1, :].round()) for mask in masks)


def test_sizes_the_model_cannot_take_are_told_by_subset(tmp_path: Path) -> None:
    own = {"path": fill(tmp_path / "a", 1, (40, 30)), "resolution": 36}
    with pytest.raises(InputError, match=r"data\.subsets\.a\.resolution: 36 pixels"):
        examples_of(recipe_of(tmp_path, {"a": own}, resolution=32))


def test_recipes_that_are_refused_or_told(tmp_path: Path) -> None:
    two: dict[str, Any] = {"a": {"path": "x"}, "b": {"path": "y", "resolution": 48}}
    stages = "stages={one: {steps: 10, resolution: 16}, two: {}}"
    with pytest.raises(RecipeError, match=r"stages\.one\.resolution: is not clear: .*\.b has a"):
        recipe_of(tmp_path, two, stages, resolution=32)
    with pytest.raises(RecipeError, match=r"data\.subsets\.b\.resolution: must be at least 8"):
        recipe_of(tmp_path, {"a": {"path": "x"}, "b": {"path": "y", "resolution": 4}})
    with pytest.raises(RecipeError, match=r"data\.subsets\.b\.resize: none excludes buckets"):
        recipe_of(tmp_path, {"b": {"path": "y", "buckets": {}, "resize": "none"}})
    two["b"]["is_reg"] = True
    with pytest.warns(RecipeWarning, match=r"data\.subsets\.b\.resolution: has no effect"):
        recipe_of(tmp_path, two, resolution=32)


def test_a_stages_resolution_is_that_of_its_subsets(tmp_path: Path) -> None:
    own = {"path": fill(tmp_path / "a", 1, (40, 30))}
    recipe = recipe_of(tmp_path, {"a": own}, resolution=32)
    stage = recipe_of(tmp_path, {"a": own}, resolution=16).data
    (subset,) = find_sources(recipe).subsets
    assert at_resolution(subset, recipe.data, stage).config.resolution == 16
    other = at_resolution(subset, stage, recipe.data)
    assert other is subset
