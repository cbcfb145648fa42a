"""Building blocks of recipe checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.config.recipe import TrainRecipe

Faults = Iterator[tuple[str, str]]
"""Pairs of (recipe key, problem)."""


@dataclass(frozen=True)
class Rule:
    """A condition on several keys of a recipe, and the message that is reported if it holds."""

    key: str
    applies: Callable[[TrainRecipe], bool]
    message: str
    """May contain values of the recipe: `{recipe.max_train_steps}`."""

    def __call__(self, recipe: TrainRecipe) -> Faults:
        """Yield the key and message if the rule applies."""
        if self.applies(recipe):
            yield self.key, self.message.format(recipe=recipe)


def at_least(low: float, **values: float | None) -> Faults:
    """Yield an error for each of the named values below `low`."""
    for name, value in values.items():
        if value is not None and value < low:
            yield name, f"must be at least {low}, got {value}"


def fraction(**values: float) -> Faults:
    """Yield an error for each of the named values outside 0 … 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            yield name, f"must lie between 0 and 1, got {value}"
