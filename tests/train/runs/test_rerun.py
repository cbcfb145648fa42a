"""A run is repeated from its folder and compared byte by byte; two runs are compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.recipe.layers import RecipeWarning
from inference.recipe.loader import dump_recipe
from train import diff, rerun
from train.config.recipe import TrainRecipe
from train.runs.comparison import Comparison, FileDifference, different_lines
from train.runs.run_directory import RunDirectory
from train.runs.tensor_comparison import different_tensors
from train.trainer import Trainer


def test_tensors_that_differ(tmp_path: Path) -> None:
    same = torch.ones(2)
    save_file(
        {"a": torch.zeros(3), "b": torch.ones(2), "c": same, "d": same.clone()},
        tmp_path / "1.safetensors",
    )
    second = {"a": torch.tensor([0.0, 3.0, 4.0]), "b": torch.ones(3), "c": same, "e": same.clone()}
    save_file(second, tmp_path / "2.safetensors")
    found = different_tensors(tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    reported = {one.name: (one.what, one.largest, one.norm, one.relative) for one in found}
    assert reported == {
        "a": ("", 4.0, 5.0, None),
        "b": ("shapes [2], [3]", None, None, None),
        "d": ("only in the first", None, None, None),
        "e": ("only in the second", None, None, None),
    }
    assert different_tensors(tmp_path / "1.safetensors", tmp_path / "1.safetensors") == []


def test_run_is_repeated_and_compared(
    make_recipe: Callable[..., TrainRecipe],
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Equal bytes and one warning; then a tensor is changed, and both commands name it."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    shutil.copyfile(data / "0-red.png", data / ".hidden.png")
    options = "objective={type: lora, rank: 2}", "max_train_steps=2", f"data.path={data}"
    with pytest.warns(RecipeWarning, match="left out: 1 with hidden names"):
        Trainer(make_recipe(*options)).train()
    run, again = tmp_path / "run", tmp_path / "again" / "run"
    capsys.readouterr()
    assert rerun.main([str(run), "--name", "again"]) == 0
    printed = capsys.readouterr()
    assert "byte by byte" in printed.out
    assert printed.err.count("left out: 1 with hidden names") == 1
    assert "rerun:" not in printed.err  # nothing has changed
    assert rerun.main([str(run), "--name", "again"]) == 2  # is there already
    capsys.readouterr()
    assert diff.main([str(run), str(again), "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (
        reported["files"]
        == reported["recipe"]
        == reported["only_first"]
        == reported["only_second"]
        == []
    )
    assert not reported["data"]["differ"] and reported["losses"] == []
    assert "artifacts/step-000002.safetensors" in reported["equal"]

    file = again / "artifacts" / "step-000002.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda one: tensors[one].numel())
    tensors[name].flatten()[0] += 1
    save_file(tensors, file)
    assert diff.main([str(run), str(again)]) == 0
    assert name in capsys.readouterr().out
    shutil.rmtree(again / "logs")
    assert diff.main([str(run), str(again)]) == 0
    assert f"curves: not compared, without {again / 'logs'}" in capsys.readouterr().out
    for arguments in ([], [str(run)], [str(run), str(tmp_path)]):
        assert diff.main(arguments) == 2
    assert rerun.main([str(tmp_path / "nothing")]) == 2


def test_files_that_differ_in_metadata_alone_are_told_so() -> None:
    files = [FileDifference(f"artifacts/last{ending}") for ending in (".safetensors", ".png")]
    assert different_lines(Comparison(files=files)) == [
        "artifacts/last.safetensors: the same tensors with other metadata, such as the run's name",
        "artifacts/last.png: other bytes",
    ]


@pytest.mark.parametrize("is_exact", [False, True])
def test_what_a_gpu_cannot_repeat_is_said(
    is_exact: bool,
    make_recipe: Callable[..., TrainRecipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Mock")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    recipe = make_recipe(f"deterministic={str(is_exact).lower()}")
    run.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
    run.environment.write_text(json.dumps({"device": "NVIDIA Mock", "gpu": {"driver": "1"}}))
    rerun.report_changes(run, [])
    told = capsys.readouterr().err
    assert ("only runs with deterministic: true repeat byte by byte" in told) is not is_exact
    assert "rerun: gpu.driver: '1' became " in told
