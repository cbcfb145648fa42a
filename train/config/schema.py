"""Build the dataclass of a training recipe for the objective that the recipe names."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from functools import cache
from typing import Any

from inference.config import DRAWING_RECIPES
from inference.recipe import Moved, RecipeError, got, load_plugins
from train.config.checks import recipe_faults, recipe_idle
from train.config.objectives import OBJECTIVE_CONFIGS, ObjectiveConfig, combined_config
from train.config.recipe import TrainRecipe

MOVED: Moved = {
    "inference.artifacts.lora": {"Lora": "inference.artifacts:Lora"},
    "inference.base_model": {"BaseModel": "inference.models.stable_diffusion:BaseModel"},
    "inference.diffusion_model": {"DiffusionModel": "inference.models:DiffusionModel"},
    "inference.errors": {"InputError": "inference.runtime:InputError"},
    "train.batch": {"Batch": "train.common:Batch"},
    "train.denoising": {"Denoising": "train.objectives.loading:OldDenoising"},
    "train.faults": {
        name: f"train.config.rules:{name}" for name in ("Faults", "at_least", "fraction")
    },
    "train.objective_configs": {
        name: f"train.config:{name}" for name in ("OBJECTIVE_CONFIGS", "ObjectiveConfig")
    },
    "train.optimizer_config": {
        name: f"train.config:{name}" for name in ("LRSchedulerConfig", "OptimizerConfig")
    },
    "train.randomness": {
        name: f"train.common:{name}" for name in ("derive_seed", "generator", "normal")
    },
}
"""What plug-ins for older versions import, and where it is now."""


def train_schema(untyped: dict[str, Any]) -> type:
    """Return the dataclass of a training recipe whose `objective` is what the recipe asks for.

    Raises:
        RecipeError: `objective.type` is missing or none of the known ones, or the recipe is one for
            generating; a plug-in is not found, or named without consent.
    """
    drawn = untyped.get("type", "images" if "images" in untyped else None)
    if "objective" not in untyped and isinstance(drawn, str) and drawn in DRAWING_RECIPES:
        raise RecipeError(
            f"is a recipe for generating (type: {drawn}): python -m inference reads it; a recipe "
            "for training has an objective"
        )
    data = untyped.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), list):
        raise RecipeError(
            "data.path: is one folder; several are data.subsets, each under a name of your choice: "
            "subsets: {one: {path: …}, two: {path: …}}"
        )
    load_plugins(untyped, moved=MOVED)
    objective = untyped.get("objective")
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
