"""Subsets: settings of their own, repeats, loss weights, pictures of classes."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from inference.recipe.layers import RecipeError
from inference.recipe.loader import dump_recipe, load_recipe
from train.common.errors import DataError
from train.common.randomness import derive_seed
from train.config.examples import Size
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.data.examples.examples import Examples
from train.data.examples.loader import build_loader
from train.data.examples.picture_buckets import Place
from train.data.examples.stream import MicroBatches
from train.data.examples.transforms import crop_image
from train.data.sources.sources import find_sources


def fill(folder: Path, count: int, caption: str | None = "a cat") -> Path:
    """So many pictures, 00.png …, their left half red and the right one blue, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.new("RGB", (16, 12), "red")
        image.paste((0, 0, 40 * number), (8, 0, 16, 12))
        image.save(folder / f"{number:02d}.png")
        if caption is not None:
            (folder / f"{number:02d}.txt").write_text(f"{caption} {number}")
    return folder


def recipe_of(folder: Path, subsets: dict[str, Any], *overrides: str, **data: Any) -> TrainRecipe:
    content = {
        "name": "run",
        "objective": {"type": "lora"},
        "data": {"subsets": subsets, "resolution": 8, **data},
        "output_dir": str(folder / "runs"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_recipe(path, train_schema, overrides)


def examples_of(recipe: TrainRecipe) -> Examples:
    sources = find_sources(recipe)
    data = recipe.data
    made = Examples(
        sources.pictures, data, data.resolution or 8, 7, sources.template, sources.subsets
    )
    if sources.class_pictures:
        made.add_class_pictures(sources.class_pictures)
    return made


def test_a_subset_takes_from_data_what_it_does_not_say(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        {
            "plain": {"path": "a"},
            "own": {"path": "b", "flip": 0.5, "captions": {"prefix": "x "}, "repeats": 3},
        },
        flip=0.25,
        captions={"suffix": " y", "shuffle_tags": True},
    )
    plain, own = recipe.data.named_subsets.values()
    assert (plain.flip, plain.captions.prefix, plain.captions.suffix) == (0.25, "", " y")
    assert (own.flip, own.captions.prefix, own.captions.suffix) == (0.5, "x ", " y")
    assert (plain.repeats, own.repeats) == (1, 3)
    assert own.captions.shuffle_tags and plain.path == "a"
    snapshot = tmp_path / "snapshot.yaml"
    snapshot.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(snapshot, train_schema) == recipe


def test_what_is_drawn_follows_from_the_subset(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        {
            "a": {"path": str(fill(tmp_path / "a", 2)), "flip": 1, "loss_weight": 0.5},
            "b": {"path": str(fill(tmp_path / "b", 3, None)), "captions": {"fallback": "dog"}},
        },
        captions={"prefix": "photo of "},
    )
    made = examples_of(recipe)
    assert [made.subset(index).name for index in range(5)] == ["a", "a", "b", "b", "b"]
    reds = [float(made.pixels(index)[0, 0, -1]) for index in range(5)]
    assert reds == [1, 1, -1, -1, -1]  # what is mirrored has red on the right
    assert made.prompt(1, 0) == "photo of a cat 1" and made.prompt(2, 0) == "photo of dog"
    by_index = {example["indices"]: example for example in (made[place] for place in range(5))}
    assert [float(by_index[index]["weight"]) for index in range(5)] == [0.5, 0.5, 1, 1, 1]
    assert made.all_prompts() == ["photo of a cat 0", "photo of a cat 1", "photo of dog"]
    assert [made.origin(*made.of_row(row))["flip"] for row in (0, 2)] == [1, 0]


def test_repeats_come_as_often_and_differ(tmp_path: Path) -> None:
    """2 x 3 + 3 x 1 = 9 places in an epoch."""
    recipe = recipe_of(
        tmp_path,
        {
            "a": {"path": str(fill(tmp_path / "a", 2)), "repeats": 3, "crop": "random"},
            "b": {"path": str(fill(tmp_path / "b", 3))},
        },
        resize="none",
    )
    made = examples_of(recipe)
    assert made.slots.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 4] and made.slots.dtype == np.int32
    for epoch in range(2):
        seen = Counter(made[9 * epoch + place]["indices"] for place in range(9))
        assert seen == {0: 3, 1: 3, 2: 1, 3: 1, 4: 1}
    cuts = {tuple(made.crop(0, 0, slot).pixels.flatten().tolist()) for slot in range(3)}
    assert len(cuts) > 1
    epoch, slot = made.place(4)
    index = int(made.slots[slot])
    draw = random.Random(derive_seed(7, "augmentation", epoch, slot))
    expected = crop_image(made.pictures[index].path, made.settings(index), Place(Size(8, 8)), draw)
    assert torch.equal(made[4]["pixels"], expected.pixels)


def test_without_subsets_a_slot_is_its_picture(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {}, f"data.path={fill(tmp_path / 'a', 4)}")
    made = examples_of(recipe)
    assert made.slots.tolist() == [0, 1, 2, 3]
    assert float(made[0]["weight"]) == 1 and made.subset(3).name == ""
    one = recipe_of(tmp_path, {"a": {"path": str(tmp_path / "a")}})
    for position in range(8):
        mine, other = made[position], examples_of(one)[position]
        assert torch.equal(mine.pop("pixels"), other.pop("pixels"))
        assert {k: mine[k] for k in ("indices", "prompts")} == {
            k: other[k] for k in ("indices", "prompts")
        }


def test_regularisation_pictures_come_one_with_each_example(tmp_path: Path) -> None:
    """As many of a class as of the others; repeats share them out among subsets: 2 x 2 to 1."""
    recipe = recipe_of(
        tmp_path,
        {
            "dogs": {"path": str(fill(tmp_path / "r", 2, "a dog")), "is_reg": True, "repeats": 2},
            "mine": {"path": str(fill(tmp_path / "a", 3)), "repeats": 2},
            "more": {"path": str(fill(tmp_path / "s", 1, "a bird")), "is_reg": True},
        },
    )
    assert recipe.data.has_prior
    made = examples_of(recipe)
    assert made.num_own == 3 and len(made) == 6
    batches = MicroBatches(
        batch_size=2, accumulation=1, rank=0, num_processes=1, start_step=0, max_steps=15,
        with_class_pictures=True,
    )  # fmt: skip
    seen: Counter[str] = Counter()
    for batch in build_loader(made, batches):
        assert not isinstance(batch, DataError)
        subsets = [made.subset(index).name for index in batch["indices"]]
        assert subsets[:2] == ["mine", "mine"] and "mine" not in subsets[2:]
        seen.update(subsets[2:])
    assert seen == {"dogs": 24, "more": 6}  # 30 places, 5 to an epoch of the classes


def test_facts_change_with_every_subset(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", 2)
    subsets = {"a": {"path": str(folder)}, "b": {"path": str(fill(tmp_path / "b", 1))}}

    def facts(**changes: Any) -> str:
        reported = {name: one | changes.get(name, {}) for name, one in subsets.items()}
        return find_sources(recipe_of(tmp_path, reported)).facts["dataset_fingerprint"]

    first = facts()
    assert facts() == first
    assert facts(a={"repeats": 2}) != first
    assert facts(b={"captions": {"prefix": "x"}}) != first
    (folder / "00.txt").write_text("other")
    assert facts() != first


FAULTS = {
    "a subset without a place": ({"a": {}}, "data.subsets.a.path: must be given (a folder of "),
    "repeats": ({"a": {"path": "x", "repeats": 0}}, "data.subsets.a.repeats: must be at least 1"),
    "a misspelling": (
        {"a": {"path": "x", "repeat": 2}},
        "data.subsets.a.repeat: Key 'repeat' not in 'SubsetConfig'. Did you mean one of: "
        "'repeats', 'path'?",
    ),
    "classes alone": ({"a": {"path": "x", "is_reg": True}}, "data.subsets: all are is_reg"),
    "dropout modes": (
        {"a": {"path": "x", "captions": {"dropout_mode": "zero_embedding", "dropout_rate": 0.1}}},
        "data.subsets.a.captions.dropout_mode: is the same for all subsets: set data.captions",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_wrong_subsets_are_told(case: str, tmp_path: Path) -> None:
    subsets, message = FAULTS[case]
    with pytest.raises(RecipeError) as caught:
        recipe_of(tmp_path, subsets)
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_a_path_beside_subsets_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="path and subsets exclude each other"):
        recipe_of(tmp_path, {"a": {"path": "x"}}, path="y")


def test_subsets_without_pictures_or_captions_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    subsets = {
        "gone": {"path": str(tmp_path / "nowhere"), "is_reg": True},
        "hollow": {"path": str(tmp_path / "empty")},
        "mute": {"path": str(fill(tmp_path / "m", 2, None))},
    }
    with pytest.raises(DataError) as caught:
        find_sources(recipe_of(tmp_path, subsets))
    gone, hollow, mute = str(caught.value).splitlines()
    assert gone.startswith("data.subsets.gone.path: ") and "is not a folder" in gone
    assert hollow.startswith("data.subsets.hollow.path: no pictures in ")
    assert "2 of 2 pictures have no caption" in mute
    assert mute.endswith('data.subsets.mute.captions.fallback="…" gives them one')


# kohya's metadata json


def metadata(tmp_path: Path, content: Any, **subset: Any) -> Examples:
    (tmp_path / "meta.json").write_text(json.dumps(content))
    reported = {"path": str(tmp_path / "a"), "metadata_file": str(tmp_path / "meta.json"), **subset}
    return examples_of(recipe_of(tmp_path, {"a": reported}))


def test_metadata_json_names_pictures_and_appends_tags(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "in", 4, "by file")
    made = metadata(
        tmp_path,
        {
            "in/00": {"caption": "a cat", "tags": "red, sleeping", "train_resolution": [512, 384]},
            "in/01.png": {"tags": "blue"},
            str(tmp_path / "a" / "in" / "03.png"): {"caption": "a dog"},
            "in/02": {},
        },
    )
    captions = {one.path.stem: one.captions for one in made.pictures}
    assert captions == {
        "00": ("a cat, red, sleeping",),
        "01": ("blue",),
        "02": ("by file 2",),
        "03": ("a dog",),
    }


WRONG_METADATA = {
    "gone": ({"00": {}, "99": {}, "98": {}}, "2 of its 3 pictures are not there: 99, 98. Looked"),
    "no object": (["a"], 'expected {"picture": {"caption": …}, …}'),
    "a list of tags": ({"00": {"tags": ["a"]}}, "00: caption and tags must be text"),
    "text": ({"00": "a cat"}, "00: expected an object with caption or tags"),
}


@pytest.mark.parametrize("case", WRONG_METADATA)
def test_wrong_metadata_is_told(case: str, tmp_path: Path) -> None:
    content, message = WRONG_METADATA[case]
    fill(tmp_path / "a", 1)
    with pytest.raises(DataError) as caught:
        metadata(tmp_path, content)
    assert str(caught.value).startswith("data.subsets.a.metadata_file: ")
    assert message in str(caught.value)
