"""Two commands on one run: one of them writes, the other one says why it does not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from inference.files import process_space
from tests.train.conftest import happens, signals
from tests.train.run_tools import contents
from train import diff, rerun
from train.runs.environments import read_environment
from train.runs.run_directory import RunDirectory
from train.runs.run_lock import Holder, start_of

SAVING = ["saving.save_every_n_steps=2"]


@pytest.fixture(scope="module")
def trained(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with one that has ended."""
    folder = tmp_path_factory.mktemp("trained")
    done = commands.train(f"output_dir={folder}", *SAVING)
    assert done.status == 0, done.err
    assert not (folder / "run" / "run.lock").exists()
    return folder


@pytest.fixture
def held(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, locked by a living process."""
    shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin
    started, host = start_of(child.pid) or "", os.uname().nodename
    holder = Holder(child.pid, started, host, process_space(), "aa", "11")
    (tmp_path / "run" / "run.lock").write_text(json.dumps(asdict(holder)))
    yield tmp_path / "run"
    child.stdin.close()
    child.wait()


def everything(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_nobody_writes_beside_a_living_run(held: Path, commands: Any) -> None:
    before = everything(held.parent)
    for option in ("overwrite=true", "resume=true", "seed=2"):
        done = commands.train(f"output_dir={held.parent}", *SAVING, option)
        assert done.status == 2, done.err
        (line,) = [one for one in done.err.splitlines() if one.startswith("train: ")]
        assert line.startswith(f"train: {held} is in use: process ")
        assert everything(held.parent) == before


def test_several_processes_are_refused_together(held: Path, commands: Any) -> None:
    for rank in commands.train_on_two(f"output_dir={held.parent}", *SAVING, "overwrite=true"):
        assert rank.status == 2, rank.err
        assert f"train: {held} is in use: process " in rank.err


def test_what_only_reads_asks_nobody(
    held: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diff.main([str(held), str(trained / "run")]) == 0
    assert rerun.main([str(held)]) == 2
    assert f"rerun: {held} is in use: process " in capsys.readouterr().err


@pytest.mark.parametrize("is_resumed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_of_two_at_once_one_trains(
    is_resumed: bool, trained: Path, commands: Any, tmp_path: Path
) -> None:
    """The other one leaves no trace: the result is that of one run alone."""
    options = [f"output_dir={tmp_path}", *SAVING]
    if is_resumed:
        shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
        options += ["resume=true", "max_train_steps=8"]
    arguments = [str(commands.recipe), "objective={type: lora, rank: 2}", *options]
    both = commands.run("train", arguments, [{}, {}], None)
    assert sorted(one.status for one in both) == [0, 2], both
    (loser,) = [one for one in both if one.status == 2]
    assert "is in use: process " in loser.err.splitlines()[-1]
    run = RunDirectory(tmp_path / "run")
    if not is_resumed:
        assert contents(run.path) == contents(trained / "run")
    steps = (2, 4, 6, 8) if is_resumed else (2, 4)
    paths = [run.artifact(step, ".safetensors") for step in steps]
    assert sorted(run.listing.read()["files"]) == [f"artifacts/{path.name}" for path in paths]
    assert run.listing.matches(paths)
    environment = read_environment(run.environment)
    identity = {key: environment[key] for key in ("run_id", "result_hash")}
    assert run.saved.newest_sound(pytest.fail, identity) == run.checkpoint(steps[-1])


@pytest.mark.slow
def test_four_runs_fill_one_cache_at_once(commands: Any, tmp_path: Path) -> None:
    """Each has its own name, and the result of a run alone."""

    def options(name: str, cache: str) -> list[str]:
        own = [f"output_dir={tmp_path}", *SAVING, f"name={name}"]
        return [*own, f"data={{cache: disk, cache_dir: {tmp_path / cache}}}"]

    objective = "objective={type: lora, rank: 2}"
    arguments = [str(commands.recipe), objective, *options("run{number}", "shared")]
    for done in commands.run("train", arguments, [{}] * 4, None):
        assert done.status == 0, done.err
    assert commands.train(*options("alone", "own")).status == 0
    weights = Path("checkpoints", "step-000004", "trained.safetensors")
    results = [(tmp_path / f"run{number}" / weights).read_bytes() for number in range(4)]
    assert {*results} == {(tmp_path / "alone" / weights).read_bytes()}


@pytest.mark.parametrize(
    "way", ["moved", "its logs deleted", pytest.param("its lock deleted", marks=pytest.mark.slow)]
)
def test_a_folder_that_goes_while_it_is_written_to(way: str, commands: Any, tmp_path: Path) -> None:
    """One message; nothing is made again in the old place."""
    run = tmp_path / "run"
    code = {
        "moved": f"os.rename({str(run)!r}, {str(tmp_path / 'new')!r})",
        "its logs deleted": f"shutil.rmtree({str(run / 'logs')!r})",
        "its lock deleted": f"os.unlink({str(run / 'run.lock')!r})",
    }[way]
    stop = happens("train.trainer:Trainer.forward_backward", 3, {"run": code})
    done = commands.train(f"output_dir={tmp_path}", *SAVING, stop=stop)
    assert "Traceback" not in done.err, done.err
    if way == "its logs deleted":
        assert done.status == 0, done.err
        assert done.err.count("logs") == 1, done.err
        assert (run / "checkpoints" / "step-000004").is_dir()
        return
    assert done.status == 1, done.err
    line = done.err.splitlines()[-1]
    assert line.startswith(f"train: {run} was moved or deleted while this run was writing to it")
    if way == "moved":
        assert not run.exists()
        moved = [f"output_dir={tmp_path}", "name=new", *SAVING, "resume=true"]
        done = commands.train(*moved)
        assert done.status == 0, done.err
        assert "resuming " in done.err
        names = [path.name for path in (tmp_path / "new" / "checkpoints").iterdir()]
        assert sorted(names) == ["step-000002", "step-000004"]


@pytest.mark.parametrize(
    "objective",
    [
        "objective={type: lora, rank: 2}",
        pytest.param("objective={type: text_to_image}", marks=pytest.mark.slow),
    ],
)
def test_a_disk_without_links_and_locks_that_flushes_no_folders(
    objective: str, trained: Path, commands: Any, tmp_path: Path
) -> None:
    """Trained, resumed from there, and the same as on any other disk."""
    poor: dict[str, object] = {"poor_disk": True}
    options = [f"output_dir={tmp_path}", objective, *SAVING]
    stop = happens("train.trainer:Trainer.forward_backward", 1, {**poor, **signals("SIGTERM")})
    assert commands.train(*options, stop=stop).status == 143
    stop = happens("train.trainer:Trainer.train", 1, poor)
    done = commands.train(*options, "resume=true", stop=stop)
    assert done.status == 0, done.err
    assert "warning" not in done.err and "resuming " in done.err
    artifacts = tmp_path / "run" / "artifacts"
    (last,) = artifacts.glob("last*")
    assert not last.is_symlink() and f"artifact: {last}" in done.out
    straight = trained
    if "lora" not in objective:
        straight = tmp_path / "straight"
        assert commands.train(*options, f"output_dir={straight}").status == 0
    found, expected = contents(tmp_path / "run"), contents(straight / "run")
    if last.is_dir():  # which is a link, not followed, in the straight run
        found = {name: one for name, one in found.items() if "/last/" not in name}
        assert (last / "model_index.json").is_file()
    assert found == expected
