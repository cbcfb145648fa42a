"""Stages of a run: their numbers, and what recipes cannot say of them."""

from dataclasses import replace
from typing import Any

import pytest

from train.config.checks import stage_faults
from train.config.clips import ClipDataConfig
from train.config.data import DataConfig
from train.config.objectives import OBJECTIVE_CONFIGS
from train.config.recipe import TrainRecipe
from train.config.schema import recipe_class
from train.config.stages import StageConfig
from train.stages import stage_at, stages_of


def recipe(stages: dict[str, StageConfig | None], steps: int = 9, **data: object) -> TrainRecipe:
    config = DataConfig(path="x", **data)  # type: ignore[arg-type]
    return recipe_class(OBJECTIVE_CONFIGS["lora"])(
        name="run",
        data=config,
        stages=stages,
        max_train_steps=steps,
        train_batch_size=2,
        gradient_accumulation_steps=3,
    )


CLIPS: dict[str, Any] = {"clips": ClipDataConfig(frames=49, height=480)}
THREE: dict[str, StageConfig | None] = {
    "one": StageConfig(steps=2, frames=9, height=256, width=384, train_batch_size=5),
    "gone": None,
    "two": StageConfig(steps=3, gradient_accumulation_steps=1),
    "three": StageConfig(frames=81),
}


def test_numbers_of_stages() -> None:
    """Positions of two processes: 2 x 30; then 60 … 71; the third begins at a multiple of 12."""
    one, two, three = stages_of(recipe(THREE, **CLIPS), 2)
    assert [(s.first_step, s.last_step) for s in (one, two, three)] == [(0, 2), (2, 5), (5, 9)]
    assert [s.first_turn for s in (one, two, three)] == [0, 6, 9]
    assert [s.first_position for s in (one, two, three)] == [0, 60, 72]
    assert [turn for turn in range(6) if one.completes_step(turn)] == [2, 5]
    assert [turn for turn in range(6, 9) if two.completes_step(turn)] == [6, 7, 8]
    clips = [s.recipe.data.clips for s in (one, two, three)]
    assert [(c.frames, c.height, c.width) for c in clips if c] == [
        (9, 256, 384),
        (49, 480, None),
        (81, 480, None),
    ]
    assert [(two.turn(step), two.step_of(two.turn(step))) for step in (0, 2, 4)] == [
        (6, 2),
        (6, 2),
        (8, 4),
    ]
    assert [three.step_of(turn) for turn in (9, 11, 12, 20)] == [5, 5, 6, 8]
    taken = [[*stage.micro_batches(4, 1, 2, False)] for stage in (two, three)]
    assert taken[0] == [[70, 71]]
    assert taken[1][:2] == [[74, 75], [78, 79]] and len(taken[1]) == 4 * 3


def test_positions_begin_where_steps_of_the_stage_can() -> None:
    stages = {"one": StageConfig(steps=1, train_batch_size=1), "two": StageConfig()}
    assert [stage.first_position for stage in stages_of(recipe({**stages}), 3)] == [0, 18]


def test_a_stage_lasts_to_its_last_step() -> None:
    stages = stages_of(recipe(THREE, **CLIPS), 1)
    names = [stage_at(stages, step).name for step in (0, 2, 3, 5, 6, 9, 20)]
    assert names == ["one", "one", "two", "two", "three", "three", "three"]


def test_a_run_without_stages_is_one() -> None:
    plain = recipe({"gone": None})
    (stage,) = stages_of(plain, 2)
    assert (stage.name, stage.recipe, stage.last_step) == ("", plain, 9)


@pytest.mark.parametrize(
    ("stages", "steps", "faults"),
    [
        ({"one": StageConfig(steps=9)}, 9, {}),
        (THREE, 9, {}),
        (THREE, 5, {"max_train_steps": "must be the sum of all stages' steps (6 or more), got 5"}),
        (
            {**THREE, "three": StageConfig(steps=5)},
            9,
            {"max_train_steps": "must be the sum of all stages' steps (10), got 9"},
        ),
        (
            {"one": StageConfig(), "two": StageConfig(steps=9)},
            9,
            {"stages.one.steps": "must be given: only the last stage may leave it out"},
        ),
        (
            {"one": StageConfig(resolution=64)},
            9,
            {"stages.one.resolution": "is for images; clips have height and width"},
        ),
    ],
)
def test_faults(stages: dict[str, StageConfig | None], steps: int, faults: dict[str, str]) -> None:
    assert dict(stage_faults(recipe(stages, steps, **CLIPS))) == faults


def test_sizes_of_clips_need_clips_and_no_buckets() -> None:
    stages: dict[str, StageConfig | None] = {"one": StageConfig(frames=9, width=32)}
    of_pictures = dict(stage_faults(recipe(stages)))
    keys = ["stages.one.frames", "stages.one.width"]
    assert of_pictures == dict.fromkeys(keys, "is for clips, which need data.clips")
    buckets = replace(CLIPS["clips"], buckets=["9x32x32"])
    assert list(dict(stage_faults(recipe(stages, clips=buckets)))) == keys
    stages = {"one": StageConfig(train_batch_size=4)}
    assert not dict(stage_faults(recipe(stages, clips=buckets)))
    assert [*StageConfig(steps=0).faults()] == [("steps", "must be at least 1, got 0")]
