"""Checkpoints are written whole, read back, known to be sound or damaged, and never lost."""

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.common.errors import RunDirectoryError, SavingError
from train.config.optimization import GuardConfig
from train.optimization.ema import Average
from train.optimization.guards import Guard
from train.optimization.strategies.ddp import DataParallel
from train.optimization.strategies.files import write_tensors
from train.optimization.training_state import TrainingState
from train.runs.checkpoint_files import CheckpointWriter, damage
from train.runs.checkpoint_folder import Checkpoints
from train.runs.run_directory import RunDirectory


def make_state(seed: int = 0, steps: int = 2) -> TrainingState:
    """A small network after some steps."""
    torch.manual_seed(seed)
    network: Any = nn.Linear(64, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    course = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    ema = Average(list(network.parameters()), decay=0.5, on_cpu=False)
    for _ in range(steps):
        network(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
        course.step()
        ema.step()
        optimizer.zero_grad()
    accelerator: Any = SimpleNamespace(scaler=None, num_processes=1)
    guard = Guard(GuardConfig(), accelerator, print)
    guard.counts["skipped"] = steps
    whole = DataParallel(accelerator, accelerator)
    return TrainingState(whole, network, optimizer, course, ema, guard)


def everything(state: TrainingState) -> list[Tensor]:
    assert state.ema is not None
    moments = state.optimizer.state_dict()["state"].values()
    kept = [value for one in moments for value in one.values()]
    return [*state.objective.state_dict().values(), *state.ema.shadow_params, *kept]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with the checkpoints of steps 1 and 2."""
    run = RunDirectory(tmp_path / "run")
    run.write_start("name: run\n", {"pictures": 1})
    for step in (1, 2):
        save(run, make_state(steps=step), step)
    return run


def save(run: RunDirectory, state: TrainingState, step: int, keep: int = 2) -> Path:
    return run.write_checkpoint(step, lambda writer: state.write(writer, step), keep, {"a": "b"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(run: RunDirectory) -> None:
    other = make_state(seed=1, steps=1)
    assert other.read(run.checkpoint(2)) == 2
    expected = make_state(steps=2)
    assert all(
        torch.equal(a, b) for a, b in zip(everything(other), everything(expected), strict=True)
    )
    assert other.lr_scheduler.state_dict()["last_epoch"] == 2
    assert other.ema is not None and other.ema.optimization_step == 2
    assert other.guard.counts["skipped"] == 2


def test_manifest_tells_files_and_what_the_run_is_made_of(run: RunDirectory) -> None:
    folder = run.checkpoint(2)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["run"]) == (2, 2, {"a": "b"})
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    del files["manifest.json"]
    assert {name: facts["size"] for name, facts in manifest["files"].items()} == files
    assert damage(folder, 2) == []


def test_size_is_told_beforehand(run: RunDirectory) -> None:
    size = sum(path.stat().st_size for path in run.checkpoint(2).iterdir())
    assert size <= make_state().size() < size + 2**17


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_are_written_as_safetensors_writes_them(dtype: torch.dtype, tmp_path: Path) -> None:
    shared = torch.randn(3, 5)
    tensors = {"b": shared.to(dtype), "a": shared, "none": torch.zeros(0, 2), "x.t": shared.T}
    writer = CheckpointWriter(tmp_path)
    with writer.file("ours") as file:
        write_tensors(tensors, file)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, tmp_path / "x")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "x")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "x").stat().st_size


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": ("optimizer.pt", cut, r"optimizer\.pt: has \d+ bytes, should have \d+"),
    "a bit": ("trained.safetensors", flip, r"trained\.safetensors: its content is not what"),
    "gone": ("ema.safetensors", Path.unlink, r"ema\.safetensors: cannot be read \(No such"),
    "manifest cut": ("manifest.json", cut, r"manifest\.json: cannot be read"),
    "manifest gone, files cut": ("manifest.json", Path.unlink, ""),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_told_and_the_one_before_it_is_taken(
    name: str, run: RunDirectory
) -> None:
    file, spoil, expected = DAMAGES[name]
    spoil(run.checkpoint(2) / file)
    if not expected:  # without a manifest it looks like the former format
        cut(run.checkpoint(2) / "optimizer.pt")
        expected = r"optimizer\.pt: cannot be read \(File is not a zip file"
    reported: list[str] = []
    assert run.saved.newest_sound(reported.append) == run.checkpoint(1)
    (line,) = reported
    assert line.startswith(f"damaged checkpoint {run.checkpoint(2)}: ")
    assert line.endswith("moved to damaged-step-000002")
    assert re.search(expected, line), line
    assert names(run.checkpoints) == ["damaged-step-000002", "step-000001"]
    save(run, make_state(steps=2), 2)
    assert damage(run.checkpoint(2), 2) == []


def test_no_sound_checkpoint_is_an_error_that_names_all(run: RunDirectory) -> None:
    flip(run.checkpoint(1) / "optimizer.pt")
    cut(run.checkpoint(2) / "trained.safetensors")
    with pytest.raises(RunDirectoryError) as error:
        run.saved.newest_sound(print)
    for part in ("step-000001: optimizer.pt", "step-000002: trained.safetensors", "overwrite=true"):
        assert part in str(error.value)
    assert names(run.checkpoints) == ["step-000001", "step-000002"]  # nothing is touched


@pytest.mark.parametrize("spoilt", [None, "optimizer.pt", "trained.safetensors", "progress.json"])
def test_former_format_is_read_and_checked(spoilt: str | None, run: RunDirectory) -> None:
    """As Limner wrote it before there was a manifest."""
    state, folder = make_state(steps=2), run.checkpoints / "step-000007"
    assert state.ema is not None
    folder.mkdir()
    save_file(state.objective.state_dict(), folder / "trained.safetensors")
    torch.save(
        {
            "optimizer": state.optimizer.state_dict(),
            "lr_scheduler": state.lr_scheduler.state_dict(),
        },
        folder / "optimizer.pt",
    )
    averages = {str(i): value for i, value in enumerate(state.ema.shadow_params)}
    save_file(averages, folder / "ema.safetensors")
    (folder / "progress.json").write_text('{"format": 1, "step": 7}')
    if spoilt:
        flip(folder / spoilt) if spoilt == "optimizer.pt" else cut_short(folder / spoilt)
        assert [fault.split(":")[0] for fault in damage(folder, 7)] == [spoilt]
        return
    assert run.saved.newest_sound(print) == folder
    other = make_state(seed=1)
    assert other.read(folder) == 7
    assert all(torch.equal(a, b) for a, b in zip(everything(other), everything(state), strict=True))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk that is full: what is written beyond fails (EFBIG)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 5_000, 10_000, 15_000])
def test_full_disk_leaves_the_checkpoints_before_it(size: int, run: RunDirectory) -> None:
    before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    with files_up_to(size), pytest.raises(SavingError) as error:
        save(run, make_state(steps=3), 3, keep=1)
    assert "step-000003 could not be written, with" in str(error.value)
    assert "File too large" in str(error.value)
    assert f"resume=true continues from {run.checkpoint(2)}" in str(error.value)
    now = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    assert now == before
    save(run, make_state(steps=3), 3, keep=1)
    assert names(run.checkpoints) == ["step-000003"]


def test_disk_that_keeps_other_bytes_is_found_out(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an older checkpoint goes."""
    seal = CheckpointWriter.seal

    def spoilt(self: CheckpointWriter, *arguments: Any) -> None:
        flip(self.folder / "optimizer.pt")
        seal(self, *arguments)

    monkeypatch.setattr(CheckpointWriter, "seal", spoilt)
    with pytest.raises(
        SavingError, match=r"what was written is not what is on the disk: optimizer"
    ):
        save(run, make_state(steps=3), 3, keep=1)
    assert names(run.checkpoints) == ["step-000001", "step-000002"]


def test_names_of_other_things_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-000010", "step-old", "step-", "damaged-step-000030", ".step-000040"):
        (tmp_path / name).mkdir()
    assert [step for step, _ in Checkpoints(tmp_path).all()] == [10]
