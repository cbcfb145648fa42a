"""The record of a run's data, and the report of changes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from train.common.errors import RunDirectoryError
from train.config.data import DataConfig
from train.data.sources.folder import Picture
from train.runs.data_manifest import (
    DataChanges,
    Row,
    changes,
    data_changes,
    read_rows,
    rows_of,
    write_rows,
)
from train.runs.run_directory import RunDirectory

CONFIG = DataConfig(path="x")
FACTS = {"pictures": 3, "dataset_fingerprint": "aa"}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """Three files with captions; one's name is not UTF-8."""
    names = ["a.png", "b.png", os.fsdecode(b"c\xff.png")]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * (10 + number))
        os.utime(tmp_path / name, ns=(0, 1_000 + number))
    return [Picture(tmp_path / name, (f"a cat, {name[0]}",)) for name in names]


def rows(pictures: list[Picture]) -> list[Row]:
    return list(rows_of(pictures, CONFIG))


def test_rows_are_read_as_they_were_written(pictures: list[Picture], tmp_path: Path) -> None:
    file = tmp_path / "run" / "data.jsonl.gz"
    write_rows(file, rows(pictures))
    assert list(read_rows(file)) == rows(pictures)
    first = file.read_bytes()
    write_rows(file, rows(pictures))
    assert file.read_bytes() == first
    assert not changes(read_rows(file), rows(pictures))


def test_each_kind_of_change_is_told(pictures: list[Picture], tmp_path: Path) -> None:
    before = rows(pictures)
    (tmp_path / "b.png").write_bytes(b"longer by far")
    (tmp_path / "d.png").write_bytes(b"")
    now = [replace(pictures[1], captions=("a dog", "a wolf")), pictures[2]]
    now.append(Picture(tmp_path / "d.png", ()))
    found = changes(before, rows(now))
    assert found.lines() == [
        f"1 added: {tmp_path}/d.png",
        f"1 removed: {tmp_path}/a.png",
        f"1 changed: {tmp_path}/b.png (11 bytes -> 13 bytes)",
        f"1 other captions: {tmp_path}/b.png: 'a cat, b' -> 'a dog' (and 1 more)",
    ]


def test_the_first_of_many_are_told(pictures: list[Picture]) -> None:
    row = rows(pictures)[0]
    many = [row._replace(path=f"{n:02d}.png", captions=["x" * 100]) for n in range(20)]
    found = changes(many, [one._replace(captions=["y"]) for one in many[:19]])
    removed, captions = found.lines()
    assert removed == "1 removed: 19.png"
    assert captions.startswith(f"19 other captions: 00.png: '{'x' * 79}…' -> 'y'; 01.png")
    assert captions.endswith("; …")


def test_bytes_of_the_same_size_are_known_by_digest_alone(pictures: list[Picture]) -> None:
    old = rows(pictures)[0]
    touched = changes([old], [old._replace(changed=7)])
    assert not touched and touched.touched == [old.path]
    old = old._replace(digest="aa")
    assert not changes([old], [old._replace(changed=7)]).touched
    found = changes([old], [old._replace(changed=7, digest="bb")])
    assert found.changed == [f"{old.path} (other bytes of the same size)"]


def test_another_order_is_a_change(pictures: list[Picture]) -> None:
    found = changes(rows(pictures), rows(pictures)[::-1])
    assert found.lines() == ["files are in another order"]


def test_frames_and_masks(pictures: list[Picture]) -> None:
    old = rows(pictures)[0]._replace(size=[["0.png", 5], ["1.png", 6]], mask=["m.png", 3])
    found = changes([old], [old._replace(size=[["0.png", 5]], mask=None)])
    reported = "2 frames of 11 bytes -> 1 frames of 5 bytes"
    assert found.changed == [f"{old.path} ({reported})", f"{old.path} (its mask)"]


def test_digests_are_kept_where_the_caches_have_them(pictures: list[Picture]) -> None:
    on_disk = list(rows_of(pictures[:1], DataConfig(path="x", cache="disk")))
    assert on_disk[0].digest and len(on_disk[0].digest) == 40
    drawn = DataConfig(path="x", cache="disk", background="random")
    assert next(rows_of(pictures[:1], drawn)).digest is None


def test_resumed_run_with_other_data_is_refused_in_detail(
    pictures: list[Picture], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_start("name: run\n", FACTS, rows(pictures))
    run.write_checkpoint(1, lambda writer: writer.text("state", ""), keep=1)
    run.open("name: run\n", FACTS, resume=True, rows=rows(pictures))
    now = rows([replace(pictures[0], captions=("a dog",)), *pictures[1:]])
    with pytest.raises(RunDirectoryError) as error:
        run.open("name: run\n", FACTS | {"dataset_fingerprint": "bb"}, resume=True, rows=now)
    reported = f"1 other captions: {tmp_path}/a.png: 'a cat, a' -> 'a dog'"
    assert reported in str(error.value).splitlines()[1]
    os.utime(tmp_path / "b.png", ns=(0, 5))
    run.open("name: run\n", FACTS, resume=True, rows=rows(pictures))
    assert run.touched == [f"{tmp_path}/b.png"]


def test_damaged_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    assert data_changes(file, ["picture"], []) == DataChanges()
    file.write_bytes(b"no gzip")
    with pytest.raises(RunDirectoryError, match=r"data\.jsonl\.gz: damaged .* delete it"):
        data_changes(file, ["picture"], [])
