"""The comparison of results finds each kind of change, and leaves out what names a moment."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from scripts.compare_files import (
    compare_folders,
    compare_plans,
    difference,
    new_name,
)
from scripts.compare_readers import LossyFrame

TENSORS = {"one": torch.arange(6.0).reshape(2, 3), "two": torch.tensor([float("nan"), 0.0])}
INFOTEXT = "a cat\nSteps: 4, Seed: 1, Version: limner 0.1.0"


def write_results(
    folder: Path,
    tensors: dict[str, torch.Tensor] = TENSORS,
    metadata: str = "16",
    pixel: int = 7,
    infotext: str = INFOTEXT,
    moment: str = "20260101000000",
) -> Path:
    """Write what a run might leave: an artifact, an optimizer's state, a picture, subtitles."""
    folder.mkdir()
    save_file(tensors, folder / "a.safetensors", {"dim": metadata, "modelspec.date": moment})
    torch.save({"step": 3, "state": {0: tensors["one"]}}, folder / "optimizer.pt")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", infotext)
    Image.fromarray(np.full((2, 2, 3), pixel, np.uint8)).save(folder / "a.png", pnginfo=texts)
    (folder / f"{moment}.srt").write_text(f"1\n{moment}_settings.txt\n")
    (folder / "environment.json").write_text(json.dumps({"command": str(folder)}))
    return folder


def test_the_same_results_at_another_time(tmp_path: Path) -> None:
    old = write_results(tmp_path / "old")
    later = INFOTEXT.replace("0.1.0", "0.2.0")
    new = write_results(tmp_path / "new", infotext=later, moment="20270203040506")
    assert compare_folders(old, new) == (4, [])


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"tensors": TENSORS | {"one": torch.tensor([[0, 1, 2], [3, 4.5, 5]])}},
            [
                "a.safetensors: tensors.one: 1 of 6 numbers differ, by at most 0.5; the first is "
                "number 4: 4.0 became 4.5",
                "optimizer.pt: state.0: 1 of 6 numbers differ, by at most 0.5; the first is "
                "number 4: 4.0 became 4.5",
            ],
        ),
        (
            {"tensors": TENSORS | {"two": torch.tensor([float("nan"), -0.0])}},
            [
                "a.safetensors: tensors.two: 1 of 2 numbers differ, by at most 0; the first is "
                "number 1: 0.0 became -0.0"
            ],
        ),
        (
            {"tensors": {"one": TENSORS["one"]}},
            ["a.safetensors: 1 gone: tensors.two"],
        ),
        ({"metadata": "32"}, ["a.safetensors: metadata.dim: '16' became '32'"]),
        (
            {"pixel": 8},
            [
                "a.png: frames.0: 12 of 12 numbers differ, by at most 1; the first is number 0: "
                "7 became 8"
            ],
        ),
        (
            {"infotext": "a cat\nSteps: 4, Seed: 2"},
            [
                "a.png: texts.parameters: …'cat\\nSteps: 4, Seed: 1, Version: limner' became "
                "…'cat\\nSteps: 4, Seed: 2'"
            ],
        ),
    ],
)
def test_a_change_is_found(change: dict[str, object], lines: list[str], tmp_path: Path) -> None:
    old = write_results(tmp_path / "old")
    new = write_results(tmp_path / "new", **change)  # type: ignore[arg-type]
    assert sorted(compare_folders(old, new)[1]) == lines


def test_files_of_one_side(tmp_path: Path) -> None:
    old, new = write_results(tmp_path / "old"), write_results(tmp_path / "new")
    (old / "a.png").unlink()
    (new / "optimizer.pt").unlink()
    assert compare_folders(old, new)[1] == [
        "optimizer.pt: only in the old tree",
        "a.png: only in the new tree",
    ]


def test_plans(tmp_path: Path) -> None:
    plans = [
        {"steps": 4, "disk": {"free": 1, "needed": 5}, "stages": [{"name": "", "steps": 4}]},
        {"steps": 4, "disk": {"free": 2, "needed": 5}, "stages": [{"name": "", "steps": 3}]},
    ]
    files = [tmp_path / f"{number}.json" for number in range(2)]
    for file, plan in zip(files, plans, strict=True):
        file.write_text(json.dumps(plan))
    assert compare_plans(files[0], files[0]) == (4, [])
    assert compare_plans(*files) == (4, ["stages.0.steps: 4 became 3"])


def test_renamed_keys() -> None:
    renamed = {"memory.away": "memory.idle", "stages.*.repeated": "phases.*.again"}
    assert new_name("memory.away", renamed) == "memory.idle"
    assert new_name("memory.away.vae", renamed) == "memory.idle.vae"
    assert new_name("memory.away_too", renamed) == "memory.away_too"
    assert new_name("stages.2.repeated", renamed) == "phases.2.again"


def test_kinds_of_values_are_told_apart() -> None:
    assert difference({"a": 2}, {"a": 2.0}) == "a: 2 became 2.0"
    assert difference({"a": torch.ones(2)}, {"a": torch.ones(2).bfloat16()}) == (
        "a: torch.float32 (2,) became torch.bfloat16 (2,)"
    )
    assert difference([1, 2], [1]) == "1 gone: 1"


def test_frames_of_an_mp4_have_a_tolerance() -> None:
    dark = LossyFrame(np.full((2, 2, 3), 100, np.uint8))
    near = LossyFrame(np.full((2, 2, 3), 97, np.uint8))
    far = LossyFrame(np.full((2, 2, 3), 95, np.uint8))
    assert difference({"frames": [dark, dark]}, {"frames": [dark, near]}) == ""
    assert difference({"frames": [dark, dark]}, {"frames": [dark, far]}) == (
        "frames.1: 5.0 levels apart, at most 4 allowed"
    )
    assert difference({"frames": [dark]}, {"frames": [dark, dark]}) == "1 added: frames.1"
