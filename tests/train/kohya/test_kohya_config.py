"""kohya's dataset configs and folders: what becomes of every key."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning, dump_recipe, load_recipe
from train.config.data import SubsetConfig
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.data.sources.sources import find_sources
from train.kohya.keys import IGNORED, REFUSED, SUBSET_KEYS, TYPES
from train.plan.plan import plan_run
from train.plan.table import show


def load(tmp_path: Path, toml: str, *overrides: str, **recipe: Any) -> TrainRecipe:
    (tmp_path / "set.toml").write_text(toml, encoding="utf-8")
    content = {
        "name": "run",
        "objective": {"type": "lora"},
        "output_dir": str(tmp_path / "runs"),
        **recipe,
    }
    content["data"] = {"kohya_config": str(tmp_path / "set.toml"), **content.get("data", {})}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(tmp_path / "recipe.yaml", train_schema, overrides)


def faults(tmp_path: Path, toml: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, toml)
    before = f"{tmp_path}/recipe.yaml: data.kohya_config: {tmp_path}/set.toml: "
    lines = str(caught.value).splitlines()
    assert all(line.startswith(before) for line in lines), lines
    return [line.removeprefix(before) for line in lines]


DREAMBOOTH = r"""
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

[[datasets]]  # of the DreamBooth kind
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'C:\hoge'
  class_tokens = 'hoge girl'

  [[datasets.subsets]]
  image_dir = 'C:\fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'C:\reg'
  class_tokens = 'human'
  keep_tokens = 1
"""
"""The first dataset of the example of sd-scripts' `docs/config_README-en.md`."""


def test_values_fall_through_from_subset_to_dataset_to_general(tmp_path: Path) -> None:
    recipe = load(tmp_path, DREAMBOOTH)
    assert [one.captions.keep_tokens for one in recipe.data.named_subsets.values()] == [2, 3, 1]
    assert (recipe.data.resolution, recipe.train_batch_size) == (512, 4)
    assert recipe.data.kohya_config is None and recipe.data.has_prior


def test_paths_of_windows(tmp_path: Path) -> None:
    text = DREAMBOOTH.replace("C:\\hoge", "sets\\girl")
    girl, boy, _ = load(tmp_path, text).data.named_subsets.values()
    assert (girl.path, boy.path) == ("sets/girl", "C:\\fuga")


FINE_TUNING = """
[[datasets]]
resolution = [768, 768]
batch_size = 2
enable_bucket = true
max_bucket_reso = 1536

  [[datasets.subsets]]
  image_dir = 'sets/piyo'
  metadata_file = 'sets/piyo_md.json'
"""


def test_a_dataset_of_the_fine_tuning_kind(tmp_path: Path) -> None:
    recipe = load(tmp_path, FINE_TUNING, "data.subsets.piyo_md.repeats=2")
    (subset,) = recipe.data.named_subsets.values()
    assert (subset.path, subset.metadata_file) == ("sets/piyo", "sets/piyo_md.json")
    assert subset.repeats == 2
    assert recipe.data.resolution == 768 and recipe.data.buckets is not None
    assert (recipe.data.buckets.min_side, recipe.data.buckets.max_side) == (256, 1536)


def test_the_recipe_has_the_last_word_and_gives_what_the_file_does_not_say(tmp_path: Path) -> None:
    data = {"flip": 0.25, "captions": {"keep_tokens": 7, "tag_dropout_rate": 0.1}}
    recipe = load(tmp_path, DREAMBOOTH, "train_batch_size=3", data=data)
    hoge = recipe.data.named_subsets["hoge"]
    assert (hoge.captions.keep_tokens, hoge.captions.tag_dropout_rate, hoge.flip) == (2, 0.1, 0.25)
    assert recipe.train_batch_size == 3 and recipe.data.resolution == 512
    base = tmp_path / "base.yaml"
    base.write_text("data: {resolution: 1024}\ntrain_batch_size: 8\n", encoding="utf-8")
    assert load(tmp_path, DREAMBOOTH, base="base.yaml").data.resolution == 512


def test_the_resolved_recipe_stands_by_itself(tmp_path: Path) -> None:
    recipe = load(tmp_path, DREAMBOOTH)
    (tmp_path / "set.toml").unlink()
    snapshot = tmp_path / "snapshot.yaml"
    snapshot.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(snapshot, train_schema) == recipe


MAPPED: dict[str, tuple[str, str, Any]] = {
    # key: value in the file, key of the subset, value there
    "num_repeats": ("3", "repeats", 3),
    "class_tokens": ("'a dog'", "captions.fallback", "a dog"),
    "caption_extension": ("'.cap'", "captions.extensions", [".cap"]),
    "shuffle_caption": ("true", "captions.shuffle_tags", True),
    "keep_tokens": ("2", "captions.keep_tokens", 2),
    "keep_tokens_separator": ("'|||'", "captions.keep_tokens_separator", "|||"),
    "secondary_separator": ("';;;'", "captions.secondary_separator", ";;;"),
    "caption_separator": ("';'", "captions.caption_separator", ";"),
    "enable_wildcard": ("true", "captions.wildcards", True),
    "caption_prefix": ("'a photo of'", "captions.prefix", "a photo of "),
    "caption_suffix": ("', best'", "captions.suffix", " , best"),
    "caption_dropout_rate": ("0.25", "captions.dropout_rate", 0.25),
    "caption_dropout_every_n_epochs": ("5", "captions.dropout_every_n_epochs", 5),
    "caption_tag_dropout_rate": ("1", "captions.tag_dropout_rate", 1.0),
    "token_warmup_min": ("2", "captions.token_warmup_min", 2),
    "token_warmup_step": ("0.5", "captions.token_warmup_step", 0.5),
    "flip_aug": ("true", "flip", 0.5),
    "random_crop": ("true", "crop", "random"),
    "color_aug": ("true", "color_jitter.hue", 0.04),
    "alpha_mask": ("true", "masks.source", "alpha"),
    "resize_interpolation": ("'cubic'", "resize_interpolation", "bicubic"),
    "is_reg": ("false", "is_reg", False),
    "image_dir": ("'x'", "path", "x"),
    "metadata_file": ("'x.json'", "metadata_file", "x.json"),
}


def test_every_key_has_its_case() -> None:
    assert set(MAPPED) == set(SUBSET_KEYS)
    assert set(TYPES) == set(SUBSET_KEYS) | set(REFUSED) | set(IGNORED) | set(DATASET_CASES)


@pytest.mark.filterwarnings("ignore::inference.recipe.loader.RecipeWarning")
@pytest.mark.parametrize("key", MAPPED)
def test_a_subsets_key_is_mapped(key: str, tmp_path: Path) -> None:
    written, dotted, expected = MAPPED[key]
    place = "" if key == "image_dir" else "image_dir = 'x'\n"
    recipe = load(tmp_path, f"[[datasets]]\n[[datasets.subsets]]\n{place}{key} = {written}\n")
    value: Any = next(iter(recipe.data.named_subsets.values()))
    assert isinstance(value, SubsetConfig)
    for name in dotted.split("."):
        value = vars(value)[name]
    assert value == expected


DATASET_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # key: value in the file, what the recipe has of it
    "batch_size": ("batch_size = 6", {"train_batch_size": 6}),
    "resolution": ("resolution = [640, 640]", {"resolution": 640}),
    "enable_bucket": ("enable_bucket = true", {"min_side": 256, "max_side": 1024, "step": 64}),
    "min_bucket_reso": ("enable_bucket = true\nmin_bucket_reso = 320", {"min_side": 320}),
    "max_bucket_reso": ("enable_bucket = true\nmax_bucket_reso = 2048", {"max_side": 2048}),
    "bucket_reso_steps": ("enable_bucket = true\nbucket_reso_steps = 32", {"step": 32}),
    "validation_split": ("validation_split = 0.2", {"split": 0.2, "seed": 0}),
    "validation_seed": ("validation_split = 0.2\nvalidation_seed = 5", {"split": 0.2, "seed": 5}),
    "bucket_no_upscale": ("enable_bucket = true\nbucket_no_upscale = true", {"no_upscale": True}),
}


@pytest.mark.parametrize("level", ["general", "[datasets]"])
@pytest.mark.parametrize("key", DATASET_CASES)
def test_a_datasets_key_is_mapped(key: str, level: str, tmp_path: Path) -> None:
    written, expected = DATASET_CASES[key]
    head = (
        f"[general]\n{written}\n[[datasets]]" if level == "general" else f"[[datasets]]\n{written}"
    )
    recipe = load(tmp_path, f"{head}\n[[datasets.subsets]]\nimage_dir = 'x'\n")
    buckets = recipe.data.buckets
    found = {"train_batch_size": recipe.train_batch_size, "resolution": recipe.data.resolution}
    found |= {} if buckets is None else vars(buckets)
    found |= {} if recipe.validation is None else vars(recipe.validation)
    assert {name: found[name] for name in expected} == expected


def test_a_size_that_is_no_square(tmp_path: Path) -> None:
    """Kohya's sizes are width x height."""
    subset = "[[datasets.subsets]]\nimage_dir = 'x'\n"
    recipe = load(tmp_path, f"[[datasets]]\nresolution = [512, 768]\n{subset}")
    assert recipe.data.buckets is not None and recipe.data.buckets.sizes == ["768x512"]
    recipe = load(
        tmp_path, f"[[datasets]]\nresolution = [512, 768]\nenable_bucket = true\n{subset}"
    )
    assert recipe.data.buckets is not None and recipe.data.buckets.area == 512 * 768


REFUSALS = {
    "face_crop_aug_range": ("[2.0, 4.0]", "no faces are looked for here"),
    "conditioning_data_dir": ("'masks'", "ControlNets are not trained here"),
    "custom_attributes": ("{ a = 1 }", "loss.prior: prediction in the recipe does that"),
    "network_multiplier": ("0.5", "always trained at full strength"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_key_says_why(key: str, tmp_path: Path) -> None:
    written, message = REFUSALS[key]
    subset = "[[datasets.subsets]]\nimage_dir = 'x'\n"
    if key == "network_multiplier":
        where, toml = "general", f"[general]\n{key} = {written}\n[[datasets]]\n{subset}"
    else:
        where, toml = "datasets 1, subset 1", f"[[datasets]]\n{subset}{key} = {written}\n"
    (line,) = faults(tmp_path, toml)
    assert line.startswith(f"{where}: {key}: ") and message in line


def test_keys_that_change_nothing_are_told(tmp_path: Path) -> None:
    toml = (
        "[general]\ncache_info = true\nvalidation_split = 0.0\nvalidation_seed = 3\n"
        "network_multiplier = 1.0\nmin_bucket_reso = 512\n"
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\ncolor_aug = true\n"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(tmp_path, toml)
    lines = sorted(
        str(one.message).removeprefix(f"{tmp_path}/set.toml: ")
        for one in caught
        if one.category is RecipeWarning
    )
    assert [line.partition(": has")[0].partition(": becomes")[0] for line in lines] == [
        "datasets 1, subset 1: color_aug",
        "general: cache_info",
        "general: min_bucket_reso",
        "general: validation_seed",
    ]


ONE = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n"
WRONG = {
    "num_repeat = 3\n": "datasets 1, subset 1: num_repeat: unknown key; did you mean num_repeats?",
    "num_repeats = '3'\n": "datasets 1, subset 1: num_repeats: expected a whole number from 0 on, "
    'got "3"',
    "num_repeats = true\n": "datasets 1, subset 1: num_repeats: expected a whole number from 0 on, "
    "got true",
    "num_repeats = 0\n": "datasets 1, subset 1: num_repeats: 0 leaves the subset out; take it out",
    "flip_aug = 1\n": "datasets 1, subset 1: flip_aug: expected true or false, got 1",
    "resolution = 512\n": "datasets 1, subset 1: resolution: belongs into "
    "[[datasets]] or [general]",
    "caption_dropout_rate = 10\n": "datasets 1, subset 1: caption_dropout_rate: expected a number "
    "from 0 to 1, got 10",
}
WRONG_FILES = {
    "[general]\nis_reg = true\n" + ONE: "general: is_reg: belongs into [[datasets.subsets]]",
    "[[dataset]]\n": "dataset: unknown table; a dataset config has [general] and [[datasets]]",
    "[[datasets]]\nresolution = [512]\n[[datasets.subsets]]\nimage_dir = 'x'\n": "datasets 1: "
    "resolution: expected a whole number, or [width, height], got [512]",
    "[[datasets]]\nresolution = 512\n": "has no [[datasets.subsets]]: nothing to learn from",
    "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n": "datasets 1, subset 1: image_dir must "
    "be given (or metadata_file)",
}  # fmt: skip


@pytest.mark.parametrize("toml", [*(ONE + line for line in WRONG), *WRONG_FILES])
def test_a_wrong_file_is_told(toml: str, tmp_path: Path) -> None:
    expected = WRONG_FILES.get(toml) or WRONG[toml.removeprefix(ONE)]
    assert faults(tmp_path, toml) == [expected]


def test_a_file_that_is_not_there_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.kohya_config: .* is not TOML: "):
        load(tmp_path, "[general\n")
    with pytest.raises(RecipeError, match=r"data\.kohya_config: .*none\.toml' is not a file"):
        load(tmp_path, "", f"data.kohya_config={tmp_path}/none.toml")


def test_datasets_of_one_size_are_learned_together(tmp_path: Path) -> None:
    toml = "[general]\nresolution = 512\n" + ONE + ONE.replace("[[datasets]]", "[[datasets]]\n"
        "resolution = [512, 512]\nenable_bucket = false")  # fmt: skip
    recipe = load(tmp_path, toml)
    assert list(recipe.data.subsets) == ["x", "x-2"] and recipe.data.resolution == 512


# Folders


def fill(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_numbered_folders_become_subsets(tmp_path: Path) -> None:
    for name, count in {"10_sks dog": 2, "3_a_b": 1, "log": 0, "0_old": 1}.items():
        fill(tmp_path / "train" / name, count)
    fill(tmp_path / "reg" / "1_dog", 4)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(
        f"name: x\nobjective: {{type: lora}}\ndata: {{kohya_folders: {tmp_path}/train, "
        f"kohya_reg_folders: {tmp_path}/reg}}\n"
    )
    with pytest.warns(
        RecipeWarning, match="has no effect: not named REPEATS_class tokens"
    ) as reported:
        recipe = load_recipe(recipe_file, train_schema)
    assert len(reported) == 2  # log, 0_old
    found = {
        name: (one.repeats, one.captions.fallback, one.is_reg)
        for name, one in recipe.data.named_subsets.items()
    }
    assert found == {
        "10_sks dog": (10, "sks dog", False),
        "3_a_b": (3, "a_b", False),
        "reg 1_dog": (1, "dog", True),
    }
    sources = find_sources(recipe)
    assert (len(sources.pictures), len(sources.class_pictures)) == (3, 4)
    with pytest.raises(RecipeError, match=r"no folder in .* is named REPEATS_class tokens"):
        load_recipe(recipe_file, train_schema, [f"data.kohya_folders={tmp_path}/train/3_a_b"])


def test_plan_of_a_dataset_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 3 x 10 + 5 x 2 = 40 examples an epoch, 10 steps in batches of 4; 25 steps are 2.5
    epochs. One class picture comes with each: 4 of them, 100 in all."""
    for name, count in {"a": 3, "b": 5, "r": 4}.items():
        fill(tmp_path / name, count)
    toml = f"""
    [general]
    caption_extension = '.txt'
    [[datasets]]
    resolution = 64
    batch_size = 4
    [[datasets.subsets]]
    image_dir = '{tmp_path}/a'
    class_tokens = 'sks dog'
    num_repeats = 10
    [[datasets.subsets]]
    image_dir = '{tmp_path}/b'
    class_tokens = 'sks cat'
    num_repeats = 2
    [[datasets.subsets]]
    is_reg = true
    image_dir = '{tmp_path}/r'
    class_tokens = 'animal'
    """
    plan = plan_run(load(tmp_path, toml, max_train_steps=25))
    (stage,) = plan.stages
    assert (stage.epoch_length, stage.examples, stage.epochs) == (40, 100, 2.5)
    reported = {one["name"]: one for one in plan.as_dict()["subsets"]}
    assert {name: (one["pictures"], one["repeats"], one["examples"], one["share"])
            for name, one in reported.items()} == {
        "a": (3, 10, 30, 0.75),
        "b": (5, 2, 10, 0.25),
        "r": (4, 1, 4, 1.0),
    }  # fmt: skip
    assert plan.class_pictures is not None and plan.class_pictures.there == 4
    assert plan.captions is not None and plan.captions.by_fallback == 8
    show(plan)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "3", "10", "30", "75.0%", "1"] in rows
    assert ["r", "(class)", "4", "1", "4", "100.0%", "1"] in rows
