"""What looks like data is learned, or named in one line."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
import tarfile
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from inference.recipe.layers import RecipeWarning
from inference.runtime.errors import InputError
from train.common.errors import DataError
from train.config.clips import ClipDataConfig
from train.config.concepts import ConceptConfig
from train.config.data import DataConfig, SubsetConfig
from train.config.examples import CaptionConfig, MaskConfig
from train.config.recipe import TrainRecipe
from train.data.containers import names
from train.data.containers.folders import walk
from train.data.pictures import reading
from train.data.sources.clip_folder import find_clips
from train.data.sources.concepts import ClassFolder, find_concepts
from train.data.sources.folder import find_pictures
from train.data.sources.sources import find_sources
from train.data.sources.subsets import kohya_metadata
from train.kohya.config import read_kohya_folders

MakeRecipe = Callable[..., TrainRecipe]
LIBC = ctypes.CDLL(None, use_errno=True)
CAPABILITIES_3 = 0x20080522
NFD = unicodedata.normalize("NFD", "é")


def save(path: Path, caption: str | None = "a cat") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def learned(root: Path, **options: Any) -> tuple[list[str], dict[str, int]]:
    """Return the names of the images, and what is left out."""
    left_out: Counter[str] = Counter()
    found = find_pictures(DataConfig(path=str(root), **options), True, left_out)
    return [one.path.relative_to(root).as_posix() for one in found], dict(+left_out)


# Links


def test_linked_folders_are_learned(tmp_path: Path) -> None:
    save(tmp_path / "real" / "deep" / "b.png")
    save(tmp_path / "data" / "own" / "a.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "real")
    assert learned(tmp_path / "data") == (["dog/deep/b.png", "own/a.png"], {})


def test_links_in_circles_end_and_no_picture_comes_twice(tmp_path: Path) -> None:
    """To itself, to what is above, to a sibling, to what links back, to one that is there."""
    root = tmp_path / "data"
    save(root / "a" / "a.png")
    save(root / "z" / "z.png")
    save(tmp_path / "far" / "inner" / "f.png")
    for name, target in {
        "a/itself": root / "a",
        "a/up": tmp_path,
        "b": root / "z",
        "far": tmp_path / "far",
        "far2": tmp_path / "far",
        "far3": tmp_path / "far" / "inner",
    }.items():
        (root / name).symlink_to(target)
    (tmp_path / "far" / "back").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "none")
    (root / "loop").symlink_to(root / "loop")
    found, left_out = learned(root)
    assert found == ["a/a.png", "far/inner/f.png", "z/z.png"]
    assert left_out == {"linked folders that are searched anyway": 6}


def test_of_two_ways_the_one_without_links_is_taken(tmp_path: Path) -> None:
    """Names of images in existing runs and caches do not change by links that point inside."""
    save(tmp_path / "real" / "a.png")
    (tmp_path / "first").symlink_to(tmp_path / "real")
    assert learned(tmp_path)[0] == ["real/a.png"]


# Hidden, masks, other formats


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "#recycle"])
def test_hidden_folders_are_left_out(folder: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / folder / "x" / "a.png")
    save(tmp_path / "._a.png")
    left_out = {"in hidden folders": 1, "with hidden names": 1}
    assert learned(tmp_path) == (["a.png"], left_out)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name in ("a.png", f"{folder}/a.png", "b/._a.png"):
            packed.write(tmp_path / "a.png", name)
    assert learned(tmp_path / "x.zip", captions=CaptionConfig(fallback="x")) == (
        ["a.png"],
        left_out,
    )


def test_a_hidden_root_is_meant(tmp_path: Path) -> None:
    save(tmp_path / ".data" / "a.png")
    assert learned(tmp_path / ".data") == (["a.png"], {})


def test_masks_of_onetrainer_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "a-masklabel.png", "a-condlabel.jpg", "alone-masklabel.png"):
        save(tmp_path / name)
    found = ["a.png", "alone-masklabel.png"]
    assert learned(tmp_path) == (found, {"masks": 2})
    (tmp_path / "alone-masklabel.png").unlink()
    assert learned(tmp_path, masks=MaskConfig()) == (["a.png"], {"masks": 1})


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".gif", ".jp2", ".ppm", ".qoi"])
def test_what_pillow_reads_is_taken(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png").with_suffix(ending)
    Image.new("RGB", (8, 8), "red").save(path)
    assert learned(tmp_path) == (sorted(["a.png", f"a{ending}"]), {})
    assert reading.read_picture(path).size == (8, 8)


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in ("a.heic", "b.HEIC", "c.jxl", "d.psd", "e.mp4", "f.zip", "readme.md", "a.json"):
        (tmp_path / name).write_bytes(b"?")
    counted = {".heic": 2, ".jxl": 1, ".psd": 1, ".mp4": 1, ".zip": 1}
    assert learned(tmp_path) == (["a.png"], counted)


def test_formats_of_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"?")
    (tmp_path / "a.txt").write_text("a cat")
    if names.find_spec("pillow_heif") is None:
        reported = r"^data.path: .heic pictures need pillow-heif.*pip install 'limner\[formats\]'$"
        with pytest.raises(DataError, match=reported):
            learned(tmp_path)

    def register() -> None:
        Image.register_open("HEIF", Image.OPEN["PNG"][0], lambda start: start[:4] == b"\x89PNG")

    library: Any = ModuleType("pillow_heif")
    library.__spec__, library.register_heif_opener = ModuleSpec("pillow_heif", None), register
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    caches = reading._formats, names.picture_extensions
    for one in caches:
        one.cache_clear()
    try:
        assert learned(tmp_path) == (["a.heic"], {})
        assert "HEIF" in reading._formats()
    finally:
        for one in caches:
            one.cache_clear()


# One line


def test_one_line_names_what_is_left_out(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    save(root / "a.png")
    save(root / "b.png", caption=None)
    save(root / ".old" / "a.png")
    (root / "a.heic").write_bytes(b"?")
    shutil.copy(root / "a.png", root / "a-masklabel.png")
    rows = [("b.png", "b"), ("lost.png", "c")]
    lines = (json.dumps({"file_name": name, "text": text}) for name, text in rows)
    (root / "metadata.jsonl").write_text("\n".join(lines))
    reported = (
        r"^data: left out: 1 \.heic, 1 in hidden folders, 1 mask, 1 row without file "
        r"\(pip install 'limner\[formats\]' reads \.heic and \.jxl\)$"
    )
    for overrides in ([f"data.path={root}"], ["data.path=null", f"data.subsets.x.path={root}"]):
        with pytest.warns(RecipeWarning, match=reported):
            assert len(find_sources(make_recipe(*overrides)).pictures) == 2


def test_concepts_and_clips_count_too(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / ".old" / "a.png")
    left_out: Counter[str] = Counter()
    data = DataConfig(concepts={"x": ConceptConfig(instance_data_dir=str(tmp_path))})
    find_concepts(data, left_out)
    assert left_out["in hidden folders"] == 1
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")
    (tmp_path / "frames").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / ".old")
    for name in ("1.png", "._1.png", "2.png"):
        shutil.copy(tmp_path / "a.png", tmp_path / "frames" / name)
    left_out.clear()
    clips = find_clips(
        DataConfig(path=str(tmp_path), clips=ClipDataConfig(frames=1, sequences=True)),
        False,
        left_out,
    )
    frames = [(one.path.name, one.facts.frames) for one in clips]
    assert frames == [("a.webp", 1), ("frames", 2), ("link", 1)]
    assert +left_out == {"in hidden folders": 1, "with hidden names": 1, ".png": 1}


def test_an_empty_caption_of_a_concept_is_named(tmp_path: Path) -> None:
    save(tmp_path / "red cat.png", "")
    data = DataConfig(concepts={"x": ConceptConfig(instance_data_dir=str(tmp_path))})
    reported = (
        r"1 of 1 pictures of data.concepts.x have empty caption files: their names are the cap"
    )
    with pytest.warns(RecipeWarning, match=reported):
        (concept,) = find_concepts(data)
    assert concept.pictures[0].captions == ("red cat",)


def test_folders_of_kohya_are_recognized(tmp_path: Path) -> None:
    save(tmp_path / "10_sks dog" / "a.png")
    save(tmp_path / "2_dog" / "a.png")
    reported = r"named as kohya's, REPEATS_class tokens \(10_sks dog, 2_dog\).*data.kohya_folders="
    with pytest.warns(RecipeWarning, match=reported):
        learned(tmp_path)
    save(tmp_path / "2019_summer" / "a.png")
    assert len(learned(tmp_path)[0]) == 3


# Names


def test_accents_are_found_in_another_spelling(tmp_path: Path) -> None:
    save(tmp_path / f"caf{NFD}.png", caption=None)
    (tmp_path / "café.txt").write_text("by its file")
    save(tmp_path / f"th{NFD}.png", caption=None)
    row = {"file_name": "thé.png", "text": "by a table"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    masks = tmp_path / ".masks"
    for name in ("café.png", "thé.png"):
        save(masks / name, caption=None)
    data = DataConfig(path=str(tmp_path), masks=MaskConfig(path=str(masks)))
    found = find_pictures(data, True)
    assert [one.captions for one in found] == [("by its file",), ("by a table",)]
    assert [one.mask for one in found] == [masks / "café.png", masks / "thé.png"]
    (tmp_path / "m.json").write_text(json.dumps({"café": {"caption": "c"}}))
    config = SubsetConfig(path=str(tmp_path))
    assert kohya_metadata(tmp_path / "m.json", config, "k") == {tmp_path / f"caf{NFD}.png": ("c",)}


def test_paths_of_windows(tmp_path: Path) -> None:
    one, two = save(tmp_path / "sub" / "a.png", None), save(tmp_path / "b.png", None)
    rows = [
        {"file_name": "sub\\a.png", "text": "a"},
        {"file_name": "C:\\data\\x\\b.png", "text": "b"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = find_pictures(DataConfig(path=str(tmp_path)), True)
    assert {picture.path: picture.captions for picture in found} == {two: ("b",), one: ("a",)}
    entries = {"D:\\train\\sub\\a": {"caption": "a"}, "b.png": {"caption": "b"}}
    (tmp_path / "m.json").write_text(json.dumps(entries))
    config = SubsetConfig(path=str(tmp_path))
    assert kohya_metadata(tmp_path / "m.json", config, "k") == {one: ("a",), two: ("b",)}


def test_folders_of_windows_are_recognized(tmp_path: Path) -> None:
    for path, hint in {
        "data\\dog": r"dog' is not a folder; it is a path of Windows, here perhaps 'data/dog'$",
        "C:\\data\\dog": r"is a path of Windows: name the folder on this disk \(WSL: ",
    }.items():
        for clips in (None, ClipDataConfig()):
            with pytest.raises(DataError, match=hint):
                data = DataConfig(path=path, clips=clips)
                find_pictures(data, True) if clips is None else find_clips(data, True)


def test_an_empty_name_in_kohyas_metadata(tmp_path: Path) -> None:
    for name in ("", ".", "/"):
        (tmp_path / "m.json").write_text(json.dumps({name: {"caption": "a"}}))
        with pytest.raises(DataError, match=rf"^key: .*m.json': '{name}' names no picture"):
            kohya_metadata(tmp_path / "m.json", SubsetConfig(path=str(tmp_path)), "key")


# Every reader


def test_names_that_are_not_utf8_are_learned(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name in (b"\xff1.png", b"\xfe2.png", b"c.png"):
        save(root / os.fsdecode(name))
    recipe = make_recipe(f"data.path={root}", "validation.split=0.4")
    sources = find_sources(recipe)
    assert len(sources.pictures) + len(sources.held_back.pictures) == 3


READERS: dict[str, Callable[[Path, str], object]] = {
    "metadata.jsonl": lambda root, text: (
        (root / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": "{text}"}}'),
        find_pictures(DataConfig(path=str(root)), True),
    ),
    "a.json": lambda root, text: (
        (root / "a.json").write_text(f'{{"caption": "{text}"}}'),
        find_pictures(DataConfig(path=str(root), captions=CaptionConfig([".json"])), True),
    ),
    "m.json": lambda root, text: (
        (root / "m.json").write_text(f'{{"a.png": {{"caption": "{text}"}}}}'),
        kohya_metadata(root / "m.json", SubsetConfig(path=str(root)), "key"),
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_json_that_no_text_can_be(reader: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", None)
    READERS[reader](tmp_path, "x\\ud83d\\ude00")  # a whole pair
    with pytest.raises(DataError, match=rf"{reader}.*contains half of a character"):
        READERS[reader](tmp_path, "x\\ud83d")
    with pytest.raises(DataError, match=rf"{reader}.*not JSON: nested too deep"):
        READERS[reader](tmp_path, '", "x": ' + "[" * 10**5 + "]" * 10**5 + ', "y": "')
    with pytest.raises(DataError, match=rf"{reader}.*not JSON: "):
        READERS[reader](tmp_path, '", "x": ' + "1" * 10**4 + ', "y": "')


def test_empty_caption_files_are_empty_captions(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "")
    save(tmp_path / "b.png", "b")
    (tmp_path / "c.txt").write_text("\n")
    save(tmp_path / "c.png", None)
    (tmp_path / "c.caption").write_text("has words")
    reported = (
        r"^1 of 3 pictures have empty caption files: they are learned without words .*a\.txt$"
    )
    with pytest.warns(RecipeWarning, match=reported):
        found = find_pictures(DataConfig(path=str(tmp_path)), True)
    assert [one.captions for one in found] == [("",), ("b",), ("has words",)]
    assert [one.told_by for one in found] == [".txt", ".txt", ".caption"]


def packed(root: Path, holder: str) -> Path:
    """Return the folder, or an archive in it with its files."""
    if holder == "folder":
        return root
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = root / f"x.{holder}"
    if holder == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.name)
    else:
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, file.name)
    return path


@pytest.mark.parametrize("holder", ["folder", "tar", "zip"])
@pytest.mark.parametrize("name", ["a.png", "metadata.jsonl", "metadata.csv", "a.txt", "a.json"])
@pytest.mark.parametrize("kind", ["hidden", "empty"])
def test_hidden_and_empty_files(
    kind: str, name: str, holder: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Of each reader in each place: refused in words, or what is not hidden is learned."""
    root = tmp_path / "pictures"
    save(root / "b.png", "b")
    if name != "a.png":
        save(root / "a.png", None)
    odd = root / f"._{name}" if kind == "hidden" else root / name
    odd.write_bytes(b"\0\1" if kind == "hidden" else b"")
    options = [f"data.path={packed(root, holder)}", "data.captions.extensions=[.txt,.json]"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecipeWarning)
        try:
            found = find_sources(make_recipe(*options, "data.captions.fallback=x")).pictures
        except DataError as error:
            assert kind == "empty" and name in str(error)
            return
    assert [one.path.name for one in found] == ["a.png", "b.png"][name == "a.png" :]


@pytest.mark.parametrize("ending", [".tar", ".zip", ".parquet", ".arrow", ".toml", ".json"])
def test_empty_files_that_name_or_hold_the_data(
    ending: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    (path := tmp_path / f"x{ending}").write_bytes(b"")
    own = {
        ".toml": [f"data.kohya_config={path}", "data.path=null"],
        ".json": [f"data.concepts_list={path}", "data.path=null"],
    }
    with pytest.raises(InputError, match=re.escape(path.name)):
        find_sources(make_recipe(*own.get(ending, [f"data.path={path}"])))


def test_one_picture_cannot_be_split(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "a.png")
    recipe = make_recipe(f"data.path={tmp_path}/pictures", "validation.split=0.1")
    with pytest.raises(DataError, match=r"validation\.split: there is one picture only, .*path"):
        find_sources(recipe)


# Access


def without_rights(action: Callable[[], object]) -> str:
    """Return the error of an action in a child that may not read what is closed to its user."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        text = "no error"
        header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
        assert LIBC.capset(header, sets) == 0
        try:
            action()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return file.read()


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "shut" / "b.png")
    (tmp_path / "shut").chmod(0)
    reported = f"DataError: {tmp_path}/shut: cannot be listed (Permission denied)"
    kind = ClassFolder(tmp_path, "x", ConceptConfig(), Counter())
    try:
        kohya = f"InputError: {str(tmp_path / 'shut')!r} cannot be listed: Permission denied"
        assert without_rights(lambda: read_kohya_folders(str(tmp_path / "shut"))) == kohya
        assert without_rights(lambda: [*(tmp_path / "shut").iterdir()]).startswith(
            "PermissionError"
        )
        for action in (
            lambda: learned(tmp_path),
            lambda: list(walk(tmp_path)),
            lambda: find_clips(DataConfig(path=str(tmp_path), clips=ClipDataConfig()), False),
            lambda: kind.pictures([".txt"]),
        ):
            assert without_rights(action).startswith(reported)
    finally:
        (tmp_path / "shut").chmod(0o700)
