"""Every option that is a path, of every kind of recipe, against what paths can be."""

import os
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from PIL import Image

from inference.config.clips import ClipsRecipe
from inference.config.recipes import AnimationRecipe, ImagesRecipe, draw_schema
from inference.deforum.settings.keys import KEYS, PATHS
from inference.deforum.settings.settings import read_settings
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_mapping, load_recipe
from inference.recipe.schema import fields_of, is_mapping, paths_of, without_none
from inference.runtime.errors import InputError
from train.config.data import SubsetConfig
from train.config.objectives import OBJECTIVE_CONFIGS
from train.config.schema import recipe_class, train_schema
from train.data import find_sources

ROOTS = {
    "train": recipe_class(OBJECTIVE_CONFIGS["lora"]),
    "images": ImagesRecipe,
    "animation": AnimationRecipe,
    "clip": ClipsRecipe,
}
BASES: dict[str, dict[str, Any]] = {
    "train": {"name": "x", "objective": {"type": "lora"}, "data": {"path": "b"}},
    "images": {"type": "images", "images": {"a": {"prompt": "a"}}},
    "animation": {"type": "animation", "settings": {"max_frames": 2}},
    "clip": {"type": "clip", "clips": {"a": {"prompt": "a"}}},
}
SOUNDS_LIKE_A_PATH = re.compile(
    r"(^|_)(path|dirs?|folders?|files?|config|image|video|mask|sketch|template|list)$"
)
NO_PATHS = {
    "data.columns.image": "the name of a column",
    "data.subsets.n.columns.image": "the name of a column",
}
SOURCES = ("kohya_config", "kohya_folders", "kohya_reg_folders", "concepts_list", "subsets")
"""Keys of `data` that replace `data.path`."""


def text_options(kind: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the dotted key of each option that holds texts, and whether it is declared a path."""
    for name, hint in fields_of(kind).items():
        own, _ = without_none(hint)
        inner = get_args(own)[0] if get_origin(own) is list else own
        if inner is str:
            yield f"{prefix}{name}", name in paths_of(kind)
        elif get_origin(own) is dict and is_mapping(without_none(get_args(own)[1])[0]):
            yield from text_options(without_none(get_args(own)[1])[0], f"{prefix}{name}.n.")
        elif is_mapping(own) and get_origin(own) is not dict:
            yield from text_options(own, f"{prefix}{name}.")


OPTIONS = [
    (root, key) for root, kind in ROOTS.items() for key, is_path in text_options(kind) if is_path
]


FILLS = {
    "prompt": "a",
    "instance_data_dir": "b",
    "init_image": "b.png",
}
"""What else must be given beside an option."""


def mapping_with(root: str, key: str, value: str) -> dict[str, Any]:
    """A sound recipe with one path more."""
    recipe: dict[str, Any] = yaml.safe_load(yaml.safe_dump(BASES[root]))
    if root == "train" and key.startswith(("data.concepts", *(f"data.{one}" for one in SOURCES))):
        del recipe["data"]["path"]
    kind: Any = ROOTS[root]
    here = recipe
    *above, last = key.split(".")
    for name in above:
        kind, _ = without_none(member(kind, name))
        here = here.setdefault(name, {})
        if is_mapping(kind) and get_origin(kind) is not dict:
            here |= {one: text for one, text in FILLS.items() if is_required(kind, one)}
            if kind is SubsetConfig:
                here["path"] = "b"
    if key == "data.subsets.n.streaming.folder":  # the same for all
        recipe["data"]["streaming"] = {last: value}
    if last == "end_image":
        here["image"] = "b.png"
    here[last] = [value] if get_origin(without_none(member(kind, last))[0]) is list else value
    return recipe


def member(kind: Any, name: str) -> Any:
    """The type of a field, or of an entry."""
    return get_args(kind)[1] if get_origin(kind) is dict else fields_of(kind)[name]


def is_required(kind: Any, name: str) -> bool:
    return any(one.name == name and one.default == "???" for one in fields(kind))


def load(root: str, key: str, value: str) -> Any:
    schema = train_schema if root == "train" else draw_schema
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_mapping(mapping_with(root, key, value), "recipe", schema)


@pytest.mark.parametrize("root", ROOTS)
def test_every_path_is_declared(root: str) -> None:
    """An option that is called like a path is in `paths` of its class, or named here."""
    options = dict(text_options(ROOTS[root]))
    unknown = [
        key
        for key, is_path in options.items()
        if not is_path and SOUNDS_LIKE_A_PATH.search(key) and key not in NO_PATHS
    ]
    assert not unknown
    sounding = [key for key, is_path in options.items() if is_path]
    assert len(sounding) >= {"train": 30, "images": 9, "animation": 5, "clip": 10}[root]


def of_each_class() -> list[tuple[str, str]]:
    """One option for each field of a class, at the first place where the class occurs."""
    found: dict[tuple[Any, str], tuple[str, str]] = {}
    for root, key in OPTIONS:
        kind: Any = ROOTS[root]
        *above, last = key.split(".")
        for name in above:
            kind, _ = without_none(member(kind, name))
        found.setdefault((kind, last), (root, key))
    return list(found.values())


@pytest.mark.parametrize(("root", "key"), of_each_class())
def test_a_tilde_is_the_home_folder(
    root: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the recipe, or where it cannot be loaded in the message."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    try:
        said = repr(load(root, key, "~/some/where"))
    except RecipeError as error:
        said = str(error)
    assert f"{tmp_path}/home/some/where" in said
    assert "~" not in said


def test_a_tilde_of_nobody_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"there is no home folder for ~nobody_at_all; .* \./~"):
        load("images", "output_dir", "~nobody_at_all/x")


def test_a_tilde_on_the_command_line_and_in_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("name: x\nobjective: {type: lora}\ndata: {path: .}\n")
    (tmp_path / "own.yaml").write_text("base: ~/base.yaml\n")
    overrides = ["output_dir=~/tilde_runs", "data.path=~/p", "data.subsets.x=null"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = load_recipe("~/own.yaml", train_schema, overrides)
    assert (recipe.output_dir, recipe.data.path) == (f"{tmp_path}/tilde_runs", f"{tmp_path}/p")


def test_a_tilde_in_settings_of_deforum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are found, and the settings are saved as they were written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    sounding = {key for key in KEYS if key.endswith(("_path", "_file", "init_image", "manifest"))}
    unread = {"image_path", "vid_path", "mask_vid_path"}  # of other programs
    sounding = {one for one in sounding if not one.startswith(("cn_", "hybrid_use"))}
    assert sounding - unread == {*PATHS}
    for key in PATHS:
        settings = read_settings({"prompts": {"0": "a"}, key: "~/a.png"})
        assert settings[key] == f"{tmp_path}/a.png"
        assert '"~/a.png"' in settings.text()


# What is read in training


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail if the block takes longer: a pipe that nobody writes to is read for ever."""

    def fail(*_: object) -> None:
        raise TimeoutError("reading never ends")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


READ = [key for root, key in OPTIONS if root == "train" and key.startswith(("data", "valid"))]


@pytest.mark.parametrize("key", READ)
@pytest.mark.parametrize("what", ["pipe", "dangling", "outside"])
def test_odd_files_are_refused_or_read(
    key: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing hangs, and nothing but an InputError comes out of finding the data."""
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    for place in (home, home / "b", tmp_path / "far"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / "a.png")
        (place / "a.txt").write_text("a")
    path = tmp_path / "odd"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("far" if what == "outside" else "nowhere"))
    try:
        with within(60), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            find_sources(load("train", key, str(path)))
    except InputError as error:
        assert f"{key}: " in str(error)


@pytest.mark.parametrize("name", ["a.png", "a.txt", "metadata.jsonl", "metadata.csv", "x.tar"])
def test_pipes_among_the_data(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("b")
    if name == "a.txt":
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / name)
    with within(60), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sources = find_sources(load("train", "data.path", str(tmp_path)))
            assert [one.path.name for one in sources.pictures] == ["b.png"]
        except InputError as error:
            assert str(tmp_path / name).removesuffix(".txt") in str(error)
