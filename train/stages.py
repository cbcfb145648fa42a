"""Stages of a run: its parts with their own example size, one after the other.

Progressive resolution, as CogVideoX was trained (Yang et al. 2024, arXiv 2408.06072, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.config import named_stages, recipe_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.config import TrainRecipe
    from train.data import MicroBatches, Pace


@dataclass(frozen=True)
class Stage:
    """A part of a run. A run without stages is a single one, without a name."""

    name: str
    recipe: TrainRecipe
    """The run's recipe in this stage."""
    first_step: int
    """Optimizer steps before it."""
    last_step: int
    """Optimizer steps at its end."""
    first_turn: int
    """Micro-batches of each process before it."""
    first_position: int
    """Sample index at which it begins."""

    def micro_batches(
        self, step: int, rank: int, num_processes: int, with_class_pictures: bool
    ) -> MicroBatches:
        """Return this process's micro-batches from a step of the run to the stage's last one."""
        from train.data import MicroBatches

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
        """Return the relation of sample indices to steps of the run."""
        from train.data import Pace

        size, last = step_size(self.recipe, num_processes), self.recipe.max_train_steps
        return Pace(size, last, self.first_step, self.first_position)

    def turn(self, step: int) -> int:
        """Return the index of a step's first micro-batch, over the whole run."""
        done = max(step, self.first_step) - self.first_step
        return self.first_turn + done * self.recipe.gradient_accumulation_steps

    def step_of(self, turn: int) -> int:
        """Return the step of a micro-batch (optimizer steps before it)."""
        within = (turn - self.first_turn) // self.recipe.gradient_accumulation_steps
        return self.first_step + within

    def completes_step(self, turn: int) -> bool:
        """Return whether a micro-batch is the last one of its optimizer step."""
        return self.step_of(turn + 1) > self.step_of(turn)


def stages_of(recipe: TrainRecipe, num_processes: int) -> list[Stage]:
    """Return the stages of a valid recipe, in order."""
    named = named_stages(recipe)
    if not named:
        return [Stage("", recipe, 0, recipe.max_train_steps, 0, 0)]
    stages: list[Stage] = []
    step = turn = position = 0
    for name, config in named.items():
        own = recipe_in(recipe, config)
        steps = config.steps or recipe.max_train_steps - step
        size = step_size(own, num_processes)  # steps begin at its multiples, as buckets require
        position = -(-position // size) * size
        stage = Stage(name, own, step, step + steps, turn, position)
        stages.append(stage)
        step += steps
        turn += steps * own.gradient_accumulation_steps
        position += steps * size
    return stages


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """Return the stage of a run after a step; at the end of a stage, still that stage."""
    return next((stage for stage in stages if step <= stage.last_step), stages[-1])


def step_size(recipe: TrainRecipe, num_processes: int) -> int:
    """Return the examples of an optimizer step, of all processes and micro-batches."""
    return recipe.train_batch_size * recipe.gradient_accumulation_steps * num_processes
