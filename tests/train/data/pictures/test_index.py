"""The index of pictures: what is found once is not looked for again, and never out of date."""

from __future__ import annotations

import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from inference.recipe.loader import RecipeWarning
from train.common.errors import DataError, tell_once
from train.config.data import DataConfig
from train.data.pictures import index, index_file
from train.data.pictures.index import Known, picture_digest, picture_facts, picture_size
from train.data.pictures.index_file import NAME, IndexFile
from train.data.pictures.soundness import sound_paths
from train.data.sources.folder import find_pictures

EVERYTHING = Known.SIZE | Known.DIGEST | Known.LIKENESS


@pytest.fixture(autouse=True)
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files count as unchanged for long; nothing is kept in the user's folder."""
    monkeypatch.setattr(index_file, "SETTLED", -(10**12))
    monkeypatch.setattr(index_file, "_roots", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tell_once.cache_clear()
    yield


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are looked at."""
    names, look = [], index.look

    def noted(path: Path, **wanted: bool) -> object:
        names.append(path.name)
        return look(path, **wanted)

    monkeypatch.setattr(index, "look", noted)
    return names


def folder(root: Path, count: int = 4) -> list[Path]:
    """Pictures of different sizes and content, the last in a folder of its own."""
    for number in range(count):
        path = root / ("inner" if number == count - 1 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 9 + number, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return [one.path for one in find_pictures(DataConfig(path=str(root)), captioned=False)]


def test_no_picture_is_opened_twice(tmp_path: Path, opened: list[str]) -> None:
    paths = folder(tmp_path / "data")
    first = picture_facts(paths, EVERYTHING)
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png"]
    assert [first.size(i) for i in range(4)] == [(9, 8), (10, 8), (11, 8), (12, 8)]
    again = picture_facts(paths[::-1], Known.SIZE | Known.LIKENESS)
    assert picture_digest(paths[2]) == first.digest(2) != first.digest(1)
    assert len(opened) == 4
    assert (again.records == first.records[::-1]).all()
    assert [path.name for path in tmp_path.rglob(".*")] == [NAME]


def test_more_is_found_out_later_and_all_is_kept(tmp_path: Path, opened: list[str]) -> None:
    paths = folder(tmp_path / "data")
    sizes = picture_facts(paths[:2], Known.SIZE)
    digests = picture_facts(paths[1:], Known.DIGEST)
    assert len(opened) == 5
    both = picture_facts(paths, Known.SIZE | Known.DIGEST)
    assert sorted(opened[5:]) == ["0.png", "2.png", "3.png"]
    assert both.size(1) == sizes.size(1)
    assert both.digest(1) == digests.digest(0)


def change_in_place(path: Path) -> None:
    """Other bytes, as many, and the time of change put back: as some programs do."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def await_tick(folder: Path) -> None:
    """Return once a change made now gets a later time than one made before, on this disk."""
    probe = folder / "tick"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        time.sleep(0.001)
        probe.touch()


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        lambda path: Image.new("RGB", (3, 3)).save(path),
        lambda path: shutil.copy2(path.with_name("1.png"), path),
        lambda path: path.with_name("1.png").replace(path),
    ],
)
def test_a_changed_picture_is_looked_at_again(tmp_path: Path, opened: list[str], change) -> None:
    paths = folder(tmp_path / "data")
    before = picture_facts(paths, Known.DIGEST)
    await_tick(tmp_path)
    change(paths[0])
    after = picture_facts(paths[:1], Known.DIGEST)
    assert opened[4:] == ["0.png"]
    assert after.digest(0) != before.digest(0)


def test_what_has_just_changed_is_not_kept(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "SETTLED", 10**12)
    paths = folder(tmp_path / "data")
    one, two = picture_facts(paths, Known.DIGEST), picture_facts(paths, Known.DIGEST)
    assert len(opened) == 8
    assert (one.records == two.records).all()


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty", "version"])
def test_a_damaged_index_is_told_and_made_anew(tmp_path, opened, damage: str) -> None:
    paths = folder(tmp_path / "data")
    first = picture_facts(paths, EVERYTHING)
    file = tmp_path / "data" / NAME
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-9],
            "changed": content[:200] + bytes([content[200] ^ 1]) + content[201:],
            "other": b"[1, 2]\n",
            "empty": b"",
            "version": content.replace(b'"limner index": 1', b'"limner index": 9'),
        }[damage]
    )
    with pytest.warns(RecipeWarning, match=r"\.limner-index: this index .* is damaged .*rebuilt"):
        again = picture_facts(paths, EVERYTHING)
    assert len(opened) == 8
    assert (again.records == first.records).all()
    assert file.read_bytes() == content


def test_where_nothing_can_be_written_the_index_is_in_the_cache_folder(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = folder(tmp_path / "data")
    write = index_file.write_atomically

    def refuse(target: Path, write_to) -> None:
        if target.name == NAME:
            raise PermissionError(13, "Permission denied")
        write(target, write_to)

    monkeypatch.setattr(index_file, "write_atomically", refuse)
    picture_facts(paths, Known.SIZE)
    picture_facts(paths, Known.SIZE)
    assert len(opened) == 4
    assert len([*(tmp_path / "home" / "limner" / "index").iterdir()]) == 1
    assert not (tmp_path / "data" / NAME).exists()


def test_two_at_once_look_once(tmp_path: Path, opened: list[str]) -> None:
    paths = folder(tmp_path / "data", 40)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(picture_facts(paths, EVERYTHING)))
        for _ in range(3)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # printed where one waits for the other
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened) == 40
    assert (found[0].records == found[1].records).all()
    assert (found[0].records == found[2].records).all()


def test_what_is_gone_leaves_the_index(tmp_path: Path) -> None:
    paths = folder(tmp_path / "data")
    picture_facts(paths, Known.SIZE)
    paths[0].unlink()
    paths[1].rename(paths[1].with_name("new.png"))
    picture_facts([paths[1].with_name("new.png")], Known.SIZE)
    names, records = IndexFile(tmp_path / "data").read()
    assert sorted(names) == [b"2.png", b"inner/3.png", b"new.png"]
    assert len(records) == 3


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_sound_pictures_are_not_opened_again(tmp_path: Path, opened: list[str], policy) -> None:
    paths = folder(tmp_path / "data")
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(paths[0], save_all=True, append_images=others)  # animated: reported at each start
    for digests in (True, False):
        with pytest.warns(RecipeWarning, match="1 of 4 pictures are animated"):
            assert sound_paths(paths, policy, digests) == paths
    assert picture_digest(paths[0]) and picture_size(paths[0]) == (8, 8)
    assert len(opened) == 4


def test_faults_are_told_together(tmp_path: Path, opened: list[str]) -> None:
    paths = folder(tmp_path / "data")
    paths[1].write_bytes(b"no picture")
    paths[2].unlink()
    facts = picture_facts(paths, Known.SIZE)
    assert [*facts.faults] == [1, 2]
    assert facts.size(3) == (12, 8)
    with pytest.raises(DataError, match=r"1\.png: cannot be read .*\n.*2\.png: cannot be read"):
        facts.check()
    picture_facts(paths[:2], Known.SIZE)
    assert opened.count("1.png") == 2 and opened.count("0.png") == 1


def test_names_that_are_not_unicode_and_symbolic_links(tmp_path: Path, opened: list[str]) -> None:
    paths = folder(tmp_path / "data")
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/\xff\xfe.png"))
    paths[0].rename(odd)
    (tmp_path / "data" / "link.png").symlink_to(paths[1])
    both = [odd, tmp_path / "data" / "link.png"]
    assert picture_facts(both, Known.SIZE).size(0) == (9, 8)
    assert picture_facts(both, Known.SIZE).size(1) == (10, 8)
    assert len(opened) == 2


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_sizes_are_upright(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (12, 8)).save(path, exif=exif)
    with Image.open(path) as image:
        assert picture_size(path) == ImageOps.exif_transpose(image).size == (8, 12)


def test_exif_data_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    rest = content.replace(chunk, b"")
    end = rest.index(b"IEND") - 4
    path.write_bytes(rest[:end] + chunk + rest[end:])
    assert picture_size(path) == (8, 12)


def test_near_duplicates_are_like_each_other(tmp_path: Path) -> None:
    y, x = np.mgrid[:96, :128]
    pixels = np.stack([127 + 120 * np.sin(x / 17 + y / 29), x * 2.0, y * 2.0], -1).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    image.resize((64, 48)).save(tmp_path / "b.png")
    image.save(tmp_path / "c.jpg", quality=40)
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "d.png")
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.png")]
    likeness = picture_facts(paths, Known.LIKENESS).records["likeness"]
    differing = np.bitwise_count(likeness ^ likeness[:1]).sum(1).tolist()
    assert differing[0] == 0
    assert max(differing[1:3]) <= 6
    assert differing[3] > 30
