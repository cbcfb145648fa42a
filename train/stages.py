"""Stages of a run: its parts with examples of their own size, one after the other.

Progressive resolution, as CogVideoX was trained (Yang et al. 2024, arXiv 2408.06072, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from train.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.config import TrainRecipe
    from train.data.stream import MicroBatches, Pace
    from train.data_config import DataConfig
    from train.stage_config import StageConfig


@dataclass(frozen=True)
class Stage:
    """A part of a run. A run without stages is a single one, without a name."""

    name: str
    recipe: TrainRecipe
    """The run's, as it is in this stage."""
    first_step: int
    """Optimizer steps before it."""
    last_step: int
    """Optimizer steps at its end."""
    first_turn: int
    """Micro-batches of each process before it."""
    first_position: int
    """Place in the run's stream of examples where it begins."""

    def micro_batches(
        self, step: int, rank: int, num_processes: int, with_class_pictures: bool
    ) -> MicroBatches:
        """This process's micro-batches from a step of the run on to the stage's last one."""
        from train.data.stream import MicroBatches

        return MicroBatches(
            batch_size=self.recipe.train_batch_size,
            accumulation=self.recipe.gradient_accumulation_steps,
            rank=rank,
            num_processes=num_processes,
            start_step=max(step, self.first_step) - self.first_step,
            max_steps=self.last_step - self.first_step,
            with_class_pictures=with_class_pictures,
            first_position=self.first_position,
        )

    def pace(self, num_processes: int) -> Pace:
        """Which step of the run the positions of its examples belong to."""
        from train.data.stream import Pace

        size, last = step_size(self.recipe, num_processes), self.recipe.max_train_steps
        return Pace(size, last, self.first_step, self.first_position)

    def turn(self, step: int) -> int:
        """Number of the first micro-batch of a step, over the whole run."""
        done = max(step, self.first_step) - self.first_step
        return self.first_turn + done * self.recipe.gradient_accumulation_steps

    def step_of(self, turn: int) -> int:
        """The step (optimizer steps before it) that a micro-batch belongs to."""
        within = (turn - self.first_turn) // self.recipe.gradient_accumulation_steps
        return self.first_step + within


def stages_of(recipe: TrainRecipe, num_processes: int) -> list[Stage]:
    """The stages of a sound recipe, in order."""
    named = named_stages(recipe)
    if not named:
        return [Stage("", recipe, 0, recipe.max_train_steps, 0, 0)]
    stages: list[Stage] = []
    step = turn = position = 0
    for name, config in named.items():
        own = recipe_in(recipe, config)
        steps = config.steps or recipe.max_train_steps - step
        size = step_size(own, num_processes)  # steps begin at its multiples, as buckets need it
        position = -(-position // size) * size
        stage = Stage(name, own, step, step + steps, turn, position)
        stages.append(stage)
        step += steps
        turn += steps * own.gradient_accumulation_steps
        position += steps * size
    return stages


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage in which a run was after a step: at the end of one it is still that one."""
    return next((stage for stage in stages if step <= stage.last_step), stages[-1])


def step_size(recipe: TrainRecipe, num_processes: int) -> int:
    """Examples of an optimizer step, of all processes and micro-batches."""
    return recipe.train_batch_size * recipe.gradient_accumulation_steps * num_processes


def named_stages(recipe: TrainRecipe) -> dict[str, StageConfig]:
    """Those that are not switched off by null."""
    return {name: stage for name, stage in recipe.stages.items() if stage is not None}


def recipe_in(recipe: TrainRecipe, config: StageConfig) -> TrainRecipe:
    """The run's recipe as it is in a stage."""
    data = recipe.data
    if config.resolution is not None:
        data = replace(data, resolution=config.resolution)
    if config.clip_size and data.clips is not None:
        data = replace(data, clips=replace(data.clips, **config.clip_size))
    batch, accumulation = config.train_batch_size, config.gradient_accumulation_steps
    return replace(
        recipe,
        data=data,
        train_batch_size=batch or recipe.train_batch_size,
        gradient_accumulation_steps=accumulation or recipe.gradient_accumulation_steps,
    )


def largest_batch(recipe: TrainRecipe) -> int:
    """Examples of the largest micro-batch of all stages."""
    sizes = [stage.train_batch_size for stage in named_stages(recipe).values()]
    return max((size or recipe.train_batch_size for size in sizes), default=recipe.train_batch_size)


def _size_faults(name: str, resolution: int | None, data: DataConfig) -> Faults:
    """Sizes that do not follow a stage's resolution."""
    if resolution is None:
        return
    parts = [one for one in data.named_subsets.values() if not one.is_reg] or [data]
    if any(one.buckets is not None and not one.buckets.follow_resolution for one in parts):
        yield f"stages.{name}.resolution", "has no effect: data.buckets says the sizes itself"
    for subset, one in data.named_subsets.items():
        if not one.is_reg and one.resolution != data.resolution:
            yield (
                f"stages.{name}.resolution",
                f"is not clear: data.subsets.{subset} has a resolution too; leave one out",
            )


def stage_faults(recipe: TrainRecipe) -> Faults:
    """What is wrong with a recipe's stages, taken together."""
    named = named_stages(recipe)
    if not named:
        return
    *before, last = named.values()
    for name, stage in list(named.items())[:-1]:
        if stage.steps is None:
            yield f"stages.{name}.steps", "must be given: only the last stage may leave it out"
    known = sum(stage.steps or 0 for stage in before)
    total = known + (last.steps if last.steps is not None else recipe.max_train_steps - known)
    if total != recipe.max_train_steps or known >= recipe.max_train_steps:
        yield (
            "max_train_steps",
            f"must be the sum of all stages' steps ({known + (last.steps or 1)}"
            f"{'' if last.steps else ' or more'}), got {recipe.max_train_steps}",
        )
    for name, stage in named.items():
        clips = recipe.data.clips
        for key in stage.clip_size:
            if clips is None:
                yield f"stages.{name}.{key}", "is of clips, which need data.clips"
            elif clips.buckets:
                yield f"stages.{name}.{key}", "cannot go with data.clips.buckets: they say sizes"
        yield from _size_faults(name, stage.resolution, recipe.data)
        if stage.resolution is not None and clips is not None:
            yield f"stages.{name}.resolution", "is of pictures; of clips say height and width"
