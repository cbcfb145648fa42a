"""Runs on pictures of several sizes keep to the plan, and go on exactly where they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.train.plan.test_plan_and_training import check, fill, trained
from tests.train.run_tools import watched
from train.config.recipe import TrainRecipe
from train.plan.plan import plan_run
from train.trainer import Trainer

Make = Callable[..., TrainRecipe]
BUCKETS = "data.buckets={min_side: 8, max_side: 32, step: 4}"


def test_plan_of_buckets_with_regularisation(make_recipe: Make, tmp_path: Path) -> None:
    """For 16 x 16: 12 x 20 and 16 x 16 are sizes; class pictures come at both."""
    recipe = make_recipe(
        "data.path=null",
        f"data.subsets.wide.path={fill(tmp_path / 'wide', 2, (40, 24))}",
        f"data.subsets.square.path={fill(tmp_path / 'square', 2, (30, 30))}",
        f"data.subsets.class={{path: {fill(tmp_path / 'class', 3, (16, 16))}, is_reg: true}}",
        BUCKETS,
    )
    plan = plan_run(recipe)
    assert plan.stages[0].buckets == {"12x20": 2, "16x16": 2}
    trainer, met = trained(recipe)
    check(plan, trainer, met)
    for batch in met[""].batches:
        assert len(batch["names"]) == 4
        assert isinstance(batch["latents"], Tensor)
        assert all("/class/" in name for name in batch["names"][2:])


class PowerCutError(Exception):
    """What stops a run."""


def train_up_to(step: int, recipe: TrainRecipe) -> None:
    """A run that is cut in the step after so many."""

    def cut(batch: Any, *_: object) -> None:
        if batch["step"] == step:
            raise PowerCutError

    trainer = Trainer(recipe, watched(cut))
    with pytest.raises(PowerCutError):
        trainer.train()
    trainer.close()


def check_learned_the_same(one: Path, other: Path, step: int) -> None:
    """The trained weights of two runs' checkpoints, value by value."""
    file = f"checkpoints/step-{step:06d}/trained.safetensors"
    ours, theirs = load_file(one / file), load_file(other / file)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_batches(make_recipe: Make, tmp_path: Path) -> None:
    """3 + 5 pictures are filled up to 4 + 6; cuts, flips and colours are drawn again."""
    folder = fill(tmp_path / "data", 3, (40, 24)), fill(tmp_path / "data" / "more", 5, (33, 30))
    options = [
        f"data.path={folder[0]}",
        BUCKETS,
        "data.crop=random",
        "data.flip=0.5",
        "data.color_jitter={brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1}",
        "saving.save_every_n_steps=3",
        "max_train_steps=7",
    ]
    straight, cut = (make_recipe(*options, f"name={name}") for name in ("straight", "cut"))
    plan = plan_run(straight)
    assert plan.stages[0].buckets == {"12x20": 3, "16x16": 5}
    assert (plan.stages[0].epoch_length, plan.stages[0].repeated) == (10, 2)
    _, met = trained(straight)
    expected = [batch["pixels"] for batch in met[""].batches]
    assert {tuple(pixels.shape[2:]) for pixels in expected} == {(12, 20), (16, 16)}

    train_up_to(5, cut)
    _, again = trained(make_recipe(*options, "name=cut", "resume=true"))
    seen = [batch["pixels"] for batch in again[""].batches]
    assert len(seen) == 4
    assert all((one == two).all() for one, two in zip(seen, expected[3:], strict=True))
    check_learned_the_same(tmp_path / "straight", tmp_path / "cut", 7)
