"""What validation takes of a run."""

from __future__ import annotations

from dataclasses import dataclass

from train.config import TrainRecipe
from train.data.sources import Sources
from train.objectives.base import Objective
from train.validation import still_examples, timesteps_of


@dataclass(frozen=True)
class ValidationPlan:
    """Pictures or clips that are held back, and how often they are looked at."""

    examples: int
    """Of one validation; with max_examples there may be more that are not learned either."""
    timesteps: list[int]
    """At which each of them is looked at."""
    validations: int
    """Of the whole run: before it, every so many steps, and after it."""

    @property
    def forward_passes(self) -> int:
        """Examples of the whole run, of all processes together; a step's have gradients too."""
        return self.examples * len(self.timesteps) * self.validations


def plan_validation(
    recipe: TrainRecipe, sources: Sources, objective: Objective
) -> ValidationPlan | None:
    """Counts them; None where there is none.

    Raises:
        InputError: the base model has no such timestep, or cannot take what is held back.
    """
    config = recipe.validation
    if config is None:
        return None
    examples = still_examples(recipe, sources, objective)
    every, last = config.every_n_steps, recipe.max_train_steps
    times = 1 + last // every + bool(last % every)
    return ValidationPlan(len(examples), timesteps_of(config, objective), times)
