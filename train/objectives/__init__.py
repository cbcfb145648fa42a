"""Objectives: one file each. `build_objective` makes the one that the recipe names."""

import pkgutil

from inference.models.base import DiffusionModel
from train.config.recipe import TrainRecipe
from train.objectives.base import Objective


def build_objective(recipe: TrainRecipe, base: DiffusionModel) -> Objective:
    """The recipe's objective, attached to the base model."""
    return pkgutil.resolve_name(type(recipe.objective).target)(recipe, base)
