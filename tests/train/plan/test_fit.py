"""The settings with which a run fits into a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from inference.runtime import InputError
from train.config import TrainRecipe
from train.memory import CONTEXT, MemoryPlan
from train.plan.__main__ import main
from train.plan.fit import GIB, Fit, Lever, card_bytes, fit, fixed, smaller_batch

SAVINGS = {"a": 3, "b": 1, "c": 6, "dear": 8, "none": 0}
"""GiB that each key saves."""


def measure(settings: Mapping[str, str]) -> MemoryPlan | None:
    if "refused" in settings:
        return None
    saved = sum(SAVINGS.get(key, 0) for key in settings)
    saved += 0 if "train_batch_size" not in settings else 2
    return MemoryPlan(at_work={"step": []}, needs={"step": (20 - saved) * GIB - CONTEXT})


def fitted(size: float, *keys: str) -> Fit:
    levers = [Lever(fixed(**{key: "1"}), f"price of {key}") for key in keys]
    return fit(TrainRecipe(), measure, round(size * GIB / 0.95), levers)


@pytest.mark.parametrize(
    ("size", "chosen"),
    [
        (20, []),
        (17, ["a"]),
        (16, ["a", "b"]),
        (11, ["a", "c"]),  # b is needless beside c
        (10, ["a", "b", "c"]),
        (6, ["c", "dear"]),
        (2, ["a", "b", "c", "dear"]),
    ],
)
def test_the_cheapest_levers_that_are_enough(size: float, chosen: list[str]) -> None:
    found = fitted(size + 0.01, "none", "refused", "a", "b", "c", "dear")
    assert list(found.settings) == chosen
    assert [next(iter(settings)) for settings, _, _ in found.steps] == chosen
    assert found.is_enough
    assert found.memory.peak == measure(found.settings).peak  # type: ignore[union-attr]


def test_all_levers_that_save_are_shown_where_none_is_enough() -> None:
    found = fitted(1, "a", "none", "b", "c", "dear")
    assert not found.is_enough
    assert list(found.settings) == ["a", "b", "c", "dear"]


def test_the_batch_stays() -> None:
    recipe = TrainRecipe(train_batch_size=4, gradient_accumulation_steps=3)
    found = fit(recipe, measure, round(18.01 * GIB / 0.95), [Lever(smaller_batch, "slower")] * 3)
    assert found.settings == {"train_batch_size": "2", "gradient_accumulation_steps": "6"}
    assert smaller_batch(TrainRecipe(train_batch_size=3)) == {}


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GB", 12), ("12 gib", 12), ("24", 24), ("10.5G", 10.5), ("0", 0), ("", 0), ("MB", 0)],
)
def test_sizes_of_gpus(text: str, size: float) -> None:
    if size:
        assert card_bytes(text) == size * GIB
        return
    with pytest.raises(InputError, match="--fit: expected the memory of a GPU"):
        card_bytes(text)


@pytest.mark.parametrize(("size", "status"), [("--fit=1GB", 0), ("--fit=0.01GB", 1)])
def test_the_command_of_a_small_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, status: int
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("a dog")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{name: x, objective: {{type: lora}}, data: {{path: {folder}}}, output_dir: {tmp_path}}}"
    )
    assert main([str(recipe), size]) == status
    told = capsys.readouterr().out
    assert ("The run fits as it is" if status == 0 else "Nothing known here makes") in told
    assert main([str(recipe), size, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == (status == 0)
    assert found["memory"]["peak"] <= found["before"]
