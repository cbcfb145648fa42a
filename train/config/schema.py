"""Build the dataclass of a training recipe for the objective that the recipe names."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from functools import cache
from typing import Any

from inference.recipe import RecipeError, cut, got
from train.config.checks import recipe_faults, recipe_idle
from train.config.objectives import OBJECTIVE_CONFIGS, ObjectiveConfig, combined_config
from train.config.recipe import TrainRecipe


def train_schema(untyped: dict[str, Any]) -> type:
    """Return the dataclass of a training recipe with the `objective` that the recipe names.

    Raises:
        RecipeError: `objective.type` is missing or none of the known ones; a plug-in is not found.
    """
    import importlib

    plugins, objective = untyped.get("plugins"), untyped.get("objective")
    for name in plugins if isinstance(plugins, list) else []:  # anything else is rejected later
        if not all(map(str.isidentifier, str(name).split("."))):
            raise RecipeError(f"plugins: {cut(repr(name))} is not a module name")
        try:
            importlib.import_module(str(name))
        except ImportError as error:
            raise RecipeError(f"plugins: {name!r} cannot be imported: {error}") from error
    kind = objective.get("type") if isinstance(objective, dict) else objective
    if not isinstance(kind, str) or kind not in OBJECTIVE_CONFIGS:
        beside = ("objective", untyped) if objective is None else ("type", objective)
        known = ", ".join(OBJECTIVE_CONFIGS)
        raise RecipeError(f"objective.type: expected one of {known}; got {got(kind, *beside)}")
    if isinstance(objective, dict) and kind == "combined":
        members = objective.get("members")
        return recipe_class(combined_config(members if isinstance(members, dict) else {}))
    return recipe_class(OBJECTIVE_CONFIGS[kind])


@cache  # one class per objective: recipes of different classes are never equal
def recipe_class(objective: type[ObjectiveConfig]) -> type:
    """Return the recipe class whose `objective` is of this config class."""
    return make_dataclass(
        "TrainRecipe",
        [("objective", objective, field(default_factory=objective))],
        bases=(TrainRecipe,),
        namespace={
            "__doc__": TrainRecipe.__doc__,
            "faults": recipe_faults,
            "idle": recipe_idle,
        },
    )
