"""`python -m train.plan --probe`: real steps, of which nothing is kept."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest

from train.plan.__main__ import main
from train.plan.plan import plan_run, probed
from train.trainer import Trainer

LARGE = 100_000_000


@pytest.mark.parametrize("data", ["cache=disk", "cache=off", "background=random"])
def test_steps_are_taken_and_nothing_is_kept(
    make_recipe, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step needs memory that is not there yet, and is measured with it."""
    recipe = make_recipe(
        "objective={type: lora, rank: 2}", f"data.{data}", f"output_dir={tmp_path}"
    )
    step = Trainer.forward_backward

    def large_step(trainer: Trainer, batch: Any) -> None:
        step(trainer, batch)
        with mmap.mmap(-1, LARGE) as block:  # no memory that was there before
            block.write(bytes(LARGE))

    monkeypatch.setattr(Trainer, "forward_backward", large_step)
    before = sorted(tmp_path.rglob("*"))
    plan = probed(plan_run(recipe))
    assert sorted(tmp_path.rglob("*")) == before
    probe = plan.probe
    assert probe is not None and probe.device == "CPU"
    (stage,) = probe.stages
    assert stage.seconds > 0
    assert probe.steps == pytest.approx(recipe.max_train_steps * stage.seconds)
    assert (stage.encoding > 0) == (data.startswith("cache") and data != "cache=off")
    assert probe.filling == pytest.approx(plan.cache.latents * stage.encoding)
    assert probe.peak > LARGE / 2
    assert probe.estimated > 0


def test_the_command(recipe_file, tmp_path, capsys, monkeypatch) -> None:
    common = [str(recipe_file), "objective={type: lora, rank: 2}", f"output_dir={tmp_path}"]
    common += ["gradient_accumulation_steps=2", "train_batch_size=2", "--probe"]
    assert main(common) == 0
    shown = capsys.readouterr().out
    for words in ("measured on CPU", "a step", "all steps", "the plan reckons"):
        assert words in shown
    assert main([*common, "--json", "--processes", "2", "parallel=zero1"]) == 0
    found = json.loads(capsys.readouterr().out)
    seconds, traffic = found["probe"]["stages"][0]["seconds"], found["traffic"]
    assert seconds > 0
    assert traffic["step"] == {"seconds": seconds, "source": "--probe", "processes": 1}
    assert 0 < traffic["share"] == traffic["seconds"] / (seconds + traffic["seconds"]) < 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(common) == 2
    assert "--probe: measures one process; leave WORLD_SIZE out" in capsys.readouterr().err
