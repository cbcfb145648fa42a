"""The examples of a step are the same, in the same order, however many processes divide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.parallel.layout import Layout
from tests.inference.models.cogvideox.models import make_video_model
from tests.train.plan.test_plan_and_training import fill
from train.config.recipe import TrainRecipe
from train.run_data import Data
from train.runs.resume_checks import with_accumulations
from train.stages import stages_of

Make = Callable[..., TrainRecipe]
Row = tuple[Any, ...]

BUCKETS = "data.buckets={min_side: 8, max_side: 32, step: 4}"


def rows(recipe: TrainRecipe, base: Any, processes: int, context: int = 1) -> list[Row]:
    """What each micro-batch of a run has, in the order of (step, micro-batch, process)."""
    data, found = Data(recipe), []
    for stage in stages_of(recipe, processes):
        examples = data.examples(stage, base, processes)
        layouts = [Layout(rank, processes * context, context) for rank in range(0, processes)]
        layouts = [replace(one, rank=one.rank * context + context - 1) for one in layouts]
        turns = zip(*(data.batches(examples, stage, 0, one) for one in layouts), strict=True)
        found += [seen(batch) for turn in turns for batch in turn]
    return found


def seen(batch: Any) -> Row:
    """What learning from a micro-batch depends on."""
    pixels = batch["pixels"]
    numbers = [[float(one.sum()) for one in pixels], [tuple(one.shape) for one in pixels]]
    names = ("step", "step_size", "first_position", "positions", "names", "prompts", "seed")
    return *(batch[name] for name in names), numbers


def check(recipe: TrainRecipe, base: Any, stages: tuple[str, ...] = ()) -> None:
    """One process with four micro-batches a step is two with two, and four with one."""
    keys = [f"stages.{name}.gradient_accumulation_steps" for name in stages]
    keys = keys or ["gradient_accumulation_steps"]
    one = rows(with_accumulations(recipe, dict.fromkeys(keys, 4)), base, 1)
    assert len(one) == 4 * recipe.max_train_steps
    assert len({row[6] for row in one}) == len(one)
    for processes, steps in ((2, 2), (4, 1)):
        divided = with_accumulations(recipe, dict.fromkeys(keys, steps))
        assert rows(divided, base, processes) == one
        assert rows(divided, base, processes, context=2) == one


CHANGING = [
    "data.captions={dropout_rate: 0.3, shuffle_tags: true, token_warmup_step: 0.5}",
    "data.flip=0.5",
    "data.cache=off",
    "max_train_steps=3",
]


def test_pictures_that_change(make_recipe: Make, tiny_base: Any) -> None:
    check(make_recipe(*CHANGING), tiny_base)


def test_buckets_with_class_pictures(make_recipe: Make, tiny_base: Any, tmp_path: Path) -> None:
    recipe = make_recipe(
        *CHANGING,
        "data.path=null",
        f"data.subsets.wide.path={fill(tmp_path / 'wide', 3, (40, 24))}",
        f"data.subsets.square.path={fill(tmp_path / 'square', 3, (30, 30))}",
        f"data.subsets.class={{path: {fill(tmp_path / 'class', 3, (16, 16))}, is_reg: true}}",
        BUCKETS,
    )
    check(recipe, tiny_base)


def test_stages_of_other_sizes(make_recipe: Make, tiny_base: Any) -> None:
    """The second one takes other micro-batches, and begins at a multiple of its step."""
    stages = "stages={first: {steps: 2}, second: {resolution: 8, train_batch_size: 3}}"
    recipe = make_recipe(*CHANGING, stages, BUCKETS)
    given = with_accumulations(recipe, {"stages.first.gradient_accumulation_steps": 4})
    assert given.gradient_accumulation_steps == 1  # that of the second one
    check(recipe, tiny_base, ("first", "second"))


@pytest.mark.parametrize("pack", [True, False])
def test_clips_of_several_lengths(pack: bool, make_clip_recipe: Make) -> None:
    recipe = make_clip_recipe(
        "data.cache=off",
        "data.clips={frames: 49, height: null, width: null, buckets: [9x32x32, 17x32x32]}",
        f"data.clips.pack={str(pack).lower()}",
        "max_train_steps=3",
    )
    check(recipe, make_video_model())
