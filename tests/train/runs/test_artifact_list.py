"""`last.*` on disks with and without links."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.runs.artifact_list import point
from train.runs.run_directory import RunDirectory


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def make_artifact(path: Path, is_folder: bool, content: str) -> Path:
    if is_folder:
        (path / "unet").mkdir(parents=True)
        (path / "unet" / "weights").write_text(content)
    else:
        path.write_text(content)
    return path


LACKING = {
    "nothing": [],
    "symbolic links": ["os.symlink"],
    "links": ["os.symlink", "os.link"],
}


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("lacking", LACKING)
def test_it_stands_for_the_newest(
    lacking: str, is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LACKING[lacking]:
        monkeypatch.setattr(name, refuse)
    last = tmp_path / "last"
    for step in ("1", "2"):
        artifact = make_artifact(tmp_path / step, is_folder, step)
        point(last, artifact)
        content = last / "unet" / "weights" if is_folder else last
        assert content.read_text() == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "last"]
    assert last.is_symlink() == (lacking == "nothing")
    first = tmp_path / "1" / "unet" / "weights" if is_folder else tmp_path / "1"
    assert first.read_text() == "1"


def fill(_: Path) -> None:
    """Leave the disk as it is; nothing can be written to it."""


def block(last: Path) -> None:
    last.mkdir()
    (last / "own").write_text("")


@pytest.mark.parametrize("spoil", [fill, block])
def test_where_nothing_is_possible_one_warning_says_so(
    spoil: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, or a folder has that name; it keeps what somebody put there."""
    run = RunDirectory(tmp_path)
    run.artifacts.mkdir()
    last = run.artifacts / "last.safetensors"
    if spoil is fill:
        for name in ("os.symlink", "os.link", "shutil.copyfile"):
            monkeypatch.setattr(name, refuse)
        assert shutil.copyfile is refuse
    spoil(last)
    said: list[str] = []
    for step in (1, 2):
        artifact = run.artifact(step, ".safetensors")
        artifact.write_text(str(step))
        run.point_last(artifact, said.append)
    (line,) = said
    assert line.startswith(f"warning: {last} cannot stand for the newest artifact (")
    assert line.endswith("use step-000001.safetensors beside it")
    expected = {"step-000001.safetensors", "step-000002.safetensors"}
    if spoil is block:
        assert (last / "own").is_file()
        expected.add(last.name)
    assert {path.name for path in run.artifacts.iterdir()} == expected
