"""Every writer on a disk that is full, in a folder that is read-only, and killed at any moment.

What has a final name is whole then, and the next start leaves nothing but it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.artifacts.adapters.lora import Lora
from inference.artifacts.adapters.low_rank import LowRank
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec, initial_pair
from inference.clips.output import ClipFiles, write_clip, write_webp
from inference.config.images import ImageConfig
from inference.deforum.loop.state import State, save_state
from inference.deforum.products.run_folder import RunFolder
from inference.deforum.settings.settings_recipe import load_settings
from inference.files import temporary
from inference.files.hash_cache import write_cache
from inference.files.name_patterns import Naming
from inference.files.temporary import this_host
from inference.files.tensors import write_folder, write_tensors
from inference.images.drawing import Drawing
from inference.media.grid import image_grid, save_grid, write_new_grid
from inference.media.outputs import PictureForm, write_picture
from inference.media.video_writing import Mp4Options, write_gif, write_mp4
from train.class_images import keep
from train.data.caching.content_cache import ContentCache
from train.data.sources.concepts import ClassPicture
from train.runs.data_manifest import write_rows

Write = Callable[[Path], object]

IMAGE = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
FRAMES = np.arange(5 * 16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(5, 16, 16, 3)
GRID = image_grid([[IMAGE, IMAGE]])
TENSORS = {"a": torch.arange(64.0), "b": torch.arange(8)}
NAMING = Naming(
    seed=5, steps=20, cfg_scale=7.0, width=8, height=8, sampler="Euler", schedule_type="Karras",
    prompt="cat", started=datetime(2026, 1, 2),
)  # fmt: skip
RUN = "20260102030405"
LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def picture(kind: str) -> Write:
    return lambda folder: write_picture(
        folder, IMAGE, "cat", NAMING, PictureForm(file_format=kind, save_text=True)
    )


def clip(*formats: str) -> Write:
    files = ClipFiles("[seed]-[number]", formats, has_text=True)
    return lambda folder: write_clip(folder, FRAMES, 8, "cat", NAMING, files)


def artifact(made: Any, suffix: str) -> Write:
    return lambda folder: made.save(folder / f"file{suffix}", torch.float16, {})


def run(write: Callable[[RunFolder], object]) -> Write:
    return lambda folder: write(RunFolder(folder, RUN))


def model_folder(folder: Path) -> None:
    def fill(new: Path) -> None:
        for part in ("one", "two"):
            (new / part).mkdir()
            (new / part / "config.json").write_text(part * 100)

    write_folder(folder / "model", fill)


def class_picture(folder: Path) -> None:
    drawing = Drawing(IMAGE, ImageConfig(prompt="cat"), "cat")
    keep(ClassPicture("a cat", 1, folder / "0.png"), drawing)


LORA = Lora({LAYER: LowRank.create(torch.nn.Linear(8, 8), 2, 2.0, 0.0, torch.Generator())}, {})
EMBEDDING = Embedding(torch.arange(24.0).reshape(3, 8), "word")
HYPERNETWORK = Hypernetwork(
    {8: initial_pair(8, HypernetworkSpec(), 0)}, HypernetworkSpec(), {}, "net"
)

WRITERS: dict[str, Write] = {
    **{kind: picture(kind) for kind in ("png", "jpg", "webp", "avif", "gif")},
    "grid": lambda folder: write_new_grid(folder, GRID, ["cat"], "grid-"),
    "preview grid": lambda folder: save_grid(folder / "step-000001.png", GRID, ["cat"]),
    "clip": clip("mp4", "webp", "gif"),
    "preview clip": lambda folder: write_webp(folder / "000.webp", FRAMES, 8, "cat"),
    "video": lambda folder: write_mp4(folder / "a.mp4", FRAMES, 8, Mp4Options(subtitles=["a"] * 5)),
    "GIF": lambda folder: write_gif(folder / "a.gif", FRAMES, 8),
    "frame": run(lambda own: own.save_frame(3, np.asarray(IMAGE))),
    "depth": run(lambda own: own.save_depth(3, np.asarray(IMAGE)[..., 0])),
    "state": run(lambda own: save_state(own.state, State(feedback=np.asarray(IMAGE)), "f")),
    "settings": run(lambda own: load_settings({}).save(own.settings)),
    "LoRA": artifact(LORA, ".safetensors"),
    **{f"embedding{one}": artifact(EMBEDDING, one) for one in (".safetensors", ".pt", ".png")},
    **{f"hypernetwork{one}": artifact(HYPERNETWORK, one) for one in (".safetensors", ".pt")},
    "model": lambda folder: write_tensors(folder / "model.safetensors", TENSORS, {"a": "b"}),
    "model folder": model_folder,
    "hash cache": lambda folder: write_cache(folder / "hashes.json", {"a": ["b"] * 20}),
    "content cache": lambda folder: ContentCache(folder).write("ab" * 20, TENSORS),
    "class picture": class_picture,
    "list of data": lambda folder: write_rows(folder / "data.jsonl.gz", []),
}
QUIET = ("hash cache",)
"""They warn: the work goes on without them."""


def contents(folder: Path) -> dict[str, bytes]:
    """What has a final name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(is_hidden(part) for part in file.relative_to(folder).parts)
    }


def is_hidden(name: str) -> bool:
    return name.startswith(".")


def everything(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns a folder in which a writer was called twice."""

    @cache
    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        for _ in range(2):
            WRITERS[name](folder)
        assert contents(folder)
        assert [*contents(folder)] == everything(folder)
        return folder

    return write


@pytest.fixture
def expected(name: str, written: Callable[[str], Path]) -> dict[str, bytes]:
    """What the writer writes in two calls."""
    return contents(written(name))


watch: list[Callable[[], object]] = []
"""Is called before every operation on files."""


def on_event(event: str, values: tuple[Any, ...]) -> None:
    if not watch or not (event == "open" or event.startswith(("os.", "shutil."))):
        return
    look = watch.pop()
    try:
        look()
    finally:
        watch.append(look)


sys.addaudithook(on_event)


@pytest.mark.parametrize("name", WRITERS)
def test_at_any_moment_what_has_a_final_name_is_whole(
    name: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """What SIGKILL would leave before each operation on files, in a new folder and over files."""
    folder = tmp_path / "out"
    folder.mkdir()
    moments: list[set[str]] = []

    def look() -> None:
        found = contents(folder)
        assert found.items() <= expected.items()
        moments.append({*found})

    for _ in range(2):
        watch.append(look)
        try:
            WRITERS[name](folder)
        finally:
            watch.clear()
    assert len(moments) >= 2
    assert contents(folder) == expected
    assert [*expected] == everything(folder)


@pytest.mark.parametrize("name", WRITERS)
def test_the_next_start_removes_what_a_killed_one_left(
    name: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """The process is killed when a file is complete, before it has its name; so is another one."""
    folder = tmp_path / "out"
    folder.mkdir()

    def child() -> None:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        WRITERS[name](folder)

    assert in_child(child) == -signal.SIGKILL
    assert everything(folder)
    assert not contents(folder).items() - expected.items()
    for _ in range(2):
        WRITERS[name](folder)
    assert contents(folder) == expected
    assert [*expected] == everything(folder)


def in_child(function: Callable[[], object]) -> int:
    """Run it in a forked process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # the parent reports it
            traceback.print_exc()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 16 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def fault_in(name: str) -> Iterator[None]:
    """An operation fails as on a disk that is full."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(name, fail)
        yield


FAULTS: dict[str, Callable[[], Any]] = {
    "full": full_disk,
    "fsync": lambda: fault_in("os.fsync"),
}


@pytest.mark.filterwarnings("ignore:.*cache of hashes cannot be written")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there(
    name: str, fault: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = contents(written(name))
    shutil.copytree(written(name), tmp_path / "whole")
    (tmp_path / "out").mkdir()
    for folder in (tmp_path / "out", tmp_path / "whole"):
        is_kept = name == "class picture" and folder.name == "whole"  # never drawn again
        fails = not is_kept and name not in QUIET
        failing = pytest.raises((OSError, ValueError)) if fails else nullcontext()
        with failing as caught, FAULTS[fault]():
            WRITERS[name](folder)
        if fails:
            assert not any(is_hidden(part) for part in Path(str(caught.value)).parts)  # type: ignore[union-attr]
        assert contents(folder).items() <= expected.items()
        assert contents(folder) == expected or folder.name == "out"
        assert [*contents(folder)] == everything(folder)


def test_a_read_only_folder_is_an_error_and_stays_as_it_was(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in WRITERS if name not in QUIET}
    for folder in folders.values():
        folder.mkdir()
        folder.chmod(0o555)

    def child() -> None:
        give_up_rights()
        for name, folder in folders.items():
            with pytest.raises(PermissionError):
                (folder / "x").touch()
            with pytest.raises((OSError, ValueError)) as caught:
                WRITERS[name](folder)
            assert "Permission denied" in str(caught.value), name

    assert in_child(child) == 0
    for folder in folders.values():
        assert everything(folder) == []
        folder.chmod(0o755)


def give_up_rights() -> None:
    """Give up root's right to write where modes forbid it."""
    system = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert system.capget(header, sets) == 0
    for number in range(6):  # effective, permitted, inheritable of 32 rights, and of the next
        if number < 3:
            sets[number] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert system.capset(header, sets) == 0


def test_two_processes_give_no_number_twice(tmp_path: Path) -> None:
    """Though names differ in the seed, so that no file would be overwritten."""
    count = 12

    def child(seed: int) -> int:
        process = os.fork()
        if process == 0:
            for _ in range(count):
                own = dataclasses.replace(NAMING, seed=seed)
                write_picture(tmp_path, IMAGE, "", own, PictureForm("[number]-[seed]"))
            os._exit(0)
        return process

    for process in [child(1), child(2)]:
        assert os.waitpid(process, 0)[1] == 0
    numbers = [int(name.partition("-")[0]) for name in everything(tmp_path)]
    assert numbers == [*range(2 * count)]


def test_a_disk_without_links_and_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", fail)
    monkeypatch.setattr("fcntl.flock", fail)
    (tmp_path / "5.txt").write_text("mine")
    form = PictureForm("[seed]", save_text=True)
    paths = [write_picture(tmp_path, IMAGE, "cat", NAMING, form) for _ in range(2)]
    assert [path.name for path in paths] == ["5-1.png", "5-2.png"]
    names = ["5-1.png", "5-1.txt", "5-2.png", "5-2.txt", "5.txt"]
    assert everything(tmp_path) == names
    assert (tmp_path / "5.txt").read_text() == "mine"
    assert all((tmp_path / one).stat().st_size for one in names)


def test_what_others_may_still_write_is_kept(tmp_path: Path) -> None:
    """The file of a living process, those of another host, and users' own hidden files."""
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    kept = [f".a.{this_host()}-1-0.limner", f".a.00000000-{dead}-0.limner", ".a", ".a.limner"]
    for name in [*kept, f".a.{this_host()}-{dead}-0.limner"]:
        (tmp_path / name).touch()
    WRITERS["hash cache"](tmp_path)
    assert everything(tmp_path) == sorted([*kept, "hashes.json"])


def test_a_folder_that_was_about_to_be_replaced_is_restored(tmp_path: Path) -> None:
    def child() -> None:
        rename = Path.rename

        def killed(self: Path, target: Path) -> None:
            if is_hidden(self.name):
                os.kill(os.getpid(), signal.SIGKILL)
            rename(self, target)

        Path.rename = killed  # type: ignore[method-assign,assignment]
        model_folder(tmp_path)

    model_folder(tmp_path)
    before = contents(tmp_path)
    assert in_child(child) == -signal.SIGKILL
    assert contents(tmp_path) == {}
    temporary._swept.clear()  # as a new process begins
    WRITERS["hash cache"](tmp_path)
    assert before.items() <= contents(tmp_path).items()
    assert len(everything(tmp_path)) == len(before) + 1
