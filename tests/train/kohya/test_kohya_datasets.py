"""Dataset configs of several datasets, that of kohya's documentation among them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.recipe.loader import RecipeWarning
from tests.train.kohya.test_kohya_config import DREAMBOOTH, load
from tests.train.plan.test_plan_and_training import trained
from tests.train.test_bucket_training import check_learned_the_same, train_up_to
from train.config.data import DataConfig
from train.config.recipe import TrainRecipe
from train.plan.plan import plan_run
from train.trainer import Trainer

Make = Callable[..., TrainRecipe]

DOCUMENTED = (
    DREAMBOOTH
    + r"""
[[datasets]]  # of the fine-tuning kind
resolution = [768, 768]
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'C:\piyo'
  metadata_file = 'C:\piyo\piyo_md.json'
"""
)
"""The example of sd-scripts' `docs/config_README-en.md`."""


def loaded(tmp_path: Path, toml: str, *overrides: str, **recipe: Any) -> tuple[Any, list[str]]:
    """Return the recipe and the warnings about the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(tmp_path, toml, *overrides, **recipe)
    assert all(one.category is RecipeWarning for one in caught)
    return found, [str(one.message).removeprefix(f"{tmp_path}/set.toml: ") for one in caught]


def test_the_documented_example(tmp_path: Path) -> None:
    recipe, reported = loaded(tmp_path, DOCUMENTED)
    subsets = recipe.data.named_subsets
    assert list(subsets) == ["hoge", "fuga", "reg", "piyo_md"]
    assert [one.path for one in subsets.values()] == [
        r"C:\hoge", r"C:\fuga", r"C:\reg", r"C:\piyo",
    ]  # fmt: skip
    assert subsets["piyo_md"].metadata_file == r"C:\piyo\piyo_md.json"
    assert [one.resolution for one in subsets.values()] == [512, 512, 512, 768]
    assert [one.captions.keep_tokens for one in subsets.values()] == [2, 3, 1, 1]
    assert [one.captions.fallback for one in subsets.values()] == [
        "hoge girl", "fuga boy", "human", None,
    ]  # fmt: skip
    assert [one.is_reg for one in subsets.values()] == [False, False, True, False]
    assert all(one.captions.shuffle_tags for one in subsets.values())
    assert all(one.captions.extensions == [".txt"] for one in subsets.values())
    assert all(one.buckets is None and one.repeats == 1 for one in subsets.values())
    assert (recipe.data.resolution, recipe.train_batch_size) == (512, 4)
    assert reported == [
        "datasets 2: batch_size: 2 has no effect: every micro-batch of a run has train_batch_size "
        "examples, so that all steps count the same; taken is 4 of datasets 1, unless the recipe "
        "sets another",
        "datasets 1, subset 3: is_reg: its images are paired with the examples of all datasets, "
        "each at the size of those that it is paired with",
    ]


def datasets(*heads: str) -> str:
    """Datasets of a subset each, called s1, s2, …"""
    return "".join(
        f"[[datasets]]\n{head}\n[[datasets.subsets]]\nimage_dir = 's{number}'\n"
        for number, head in enumerate(heads, 1)
    )


def sizes_of(data: DataConfig) -> list[Any]:
    """Of the run and of each subset: resolution, and what is said of buckets."""
    return [
        (one.resolution, one.buckets and (one.buckets.sizes or one.buckets.max_side))
        for one in (data, *data.named_subsets.values())
    ]


SIZES: dict[tuple[str, ...], list[Any]] = {
    ("resolution = 512", "resolution = [512, 512]"): [(512, None)] * 3,
    # what one leaves out is the recipe's, which says 256
    ("resolution = 512", ""): [(256, None), (512, None), (256, None)],
    ("", "resolution = 512"): [(256, None), (256, None), (512, None)],
    ("resolution = 512", "resolution = 768\nenable_bucket = true\nmax_bucket_reso = 1536"): [
        (512, None), (512, None), (768, 1536),
    ],
    ("resolution = 512\nenable_bucket = true", "resolution = 512\nenable_bucket = false"): [
        (512, None), (512, 1024), (512, None),
    ],
    (
        "resolution = 512\nenable_bucket = true",
        "resolution = 512\nenable_bucket = true\nmax_bucket_reso = 1536",
    ): [(512, 1024), (512, 1024), (512, 1536)],
    ("resolution = 512", "resolution = [512, 768]"): [
        (256, None), (512, None), (256, ["768x512"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("heads", SIZES)
def test_sizes_of_several_datasets(heads: tuple[str, ...], tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("data: {resolution: 256}\n")
    recipe, reported = loaded(tmp_path, datasets(*heads), base="base.yaml")
    assert sizes_of(recipe.data) == SIZES[heads]
    assert reported == []


def test_the_recipe_has_the_last_word_on_sizes(tmp_path: Path) -> None:
    toml = datasets("resolution = 512", "resolution = 768")
    recipe, _ = loaded(tmp_path, toml, "data.subsets.s2.resolution=640", "data.resolution=384")
    assert sizes_of(recipe.data) == [(384, None), (384, None), (640, None)]


def test_what_a_run_has_once_is_the_first_that_is_said(tmp_path: Path) -> None:
    toml = datasets("validation_split = 0.25", "batch_size = 3", "validation_split = 0.1")
    recipe, reported = loaded(tmp_path, toml)
    assert recipe.train_batch_size == 3 and recipe.validation.split == 0.25
    assert [
        line.partition(": ever")[0].partition(": validation.split is")[0] for line in reported
    ] == [
        "datasets 1: batch_size: is not said",
        "datasets 3: batch_size: is not said",
        "datasets 2: validation_split: is not said",
        "datasets 3: validation_split: 0.1 has no effect",
    ]


def example_on_disk(root: Path) -> Path:
    """The documented example with tiny pictures, its sides a sixteenth."""
    toml = DOCUMENTED.replace("512", "32").replace("768", "48").replace("C:\\", f"{root}/")
    toml = toml.replace("piyo\\", "piyo/")
    for number, (name, size) in enumerate(
        {"hoge": (40, 32), "fuga": (33, 50), "reg": (20, 20), "piyo": (64, 48)}.items()
    ):
        (root / name).mkdir(parents=True)
        for picture in range(3):
            colour = (80 * number, 90 * picture, 50)
            Image.new("RGB", size, colour).save(root / name / f"{picture}.png")
    (root / "hoge" / "0.txt").write_text("hoge girl, a, b, c, d")
    entries = {str(one): {"caption": f"piyo {one}", "tags": "x, y, z"} for one in range(3)}
    (root / "piyo" / "piyo_md.json").write_text(json.dumps(entries))
    (root / "set.toml").write_text(toml)
    return root / "set.toml"


@pytest.mark.filterwarnings("ignore::inference.recipe.loader.RecipeWarning")
def test_the_documented_example_trains_and_goes_on(make_recipe: Make, tmp_path: Path) -> None:
    """6 + 3 pictures in batches of 4, filled up to 8 + 4."""
    options = [
        "data.path=null",
        f"data.kohya_config={example_on_disk(tmp_path / 'sets')}",
        "data.flip=0.5",
        "data.cached_crops=0",
        "saving.save_every_n_steps=2",
        "max_train_steps=5",
    ]
    straight, cut = (make_recipe(*options, f"name={name}") for name in ("straight", "cut"))
    plan = plan_run(straight)
    assert plan.stages[0].buckets == {"32x32": 6, "48x48": 3}
    assert (plan.stages[0].epoch_length, plan.stages[0].repeated) == (12, 3)
    _, met = trained(straight)
    seen = met[""].batches
    assert {tuple(batch["pixels"].shape) for batch in seen} == {(8, 3, 32, 32), (8, 3, 48, 48)}
    for batch in seen:
        assert all("/reg/" in name for name in batch["names"][4:])
        of_piyo = ["/piyo/" in name for name in batch["names"][:4]]
        assert of_piyo == [batch["pixels"].shape[-1] == 48] * 4

    train_up_to(3, cut)
    _, again = trained(make_recipe(*options, "name=cut", "resume=true"))
    assert [batch["names"] for batch in again[""].batches] == [batch["names"] for batch in seen[2:]]
    check_learned_the_same(tmp_path / "straight", tmp_path / "cut", 5)


@pytest.mark.filterwarnings("ignore::inference.recipe.loader.RecipeWarning")
def test_validation_looks_at_pictures_at_their_own_size(make_recipe: Make, tmp_path: Path) -> None:
    config = example_on_disk(tmp_path / "sets")
    options = ["data.path=null", f"data.kohya_config={config}", "validation={split: 0.6}"]
    trainer = Trainer(make_recipe(*options))
    held = trainer.validation.examples
    shapes = {held.subset(index).name: held.shape(index) for index in range(len(held))}
    trainer.close()
    assert shapes == {"hoge": (32, 32), "fuga": (32, 32), "piyo_md": (48, 48)}
    assert {len({held.shape(index) for index in one}) for one in trainer.validation.chunks()} == {1}
