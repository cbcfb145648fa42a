"""The dataclass of a training recipe, for its objective, and `limner schema train|draw`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import field, make_dataclass
from functools import cache
from typing import Any

from inference.config import DRAWING_RECIPES
from inference.recipe import Moved, RecipeError, got, load_plugins
from train.config.checks import recipe_faults, recipe_idle
from train.config.objectives import (
    OBJECTIVE_CONFIGS,
    MemberConfig,
    ObjectiveConfig,
    combined_config,
)
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


USAGE = """usage: limner schema train|draw [plugins=[MODULE]]

Prints the JSON Schema (draft 2020-12) of training or drawing recipes. Editors complete and check a
recipe by it that begins with
  # yaml-language-server: $schema=PATH"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a schema; return the exit status: 0 done, 2 wrong input."""
    from inference.runtime import run_command

    return run_command("schema", command, arguments, prints_result=True)


def command(arguments: list[str]) -> int:
    """Print the usage or a schema; return the exit status."""
    from inference.runtime import output

    if not arguments or arguments[0] in ("-h", "--help"):
        output(USAGE, is_error=not arguments)
        return 0 if arguments else 2
    named, arguments = plugin_options(arguments)
    if arguments not in (["train"], ["draw"]):
        got = " ".join(arguments)
        output(f"schema: expected one of train, draw; got {got}", is_error=True)
        return 2

    if status := with_plugins("schema", named):
        return status
    output(schema_text(arguments[0]).rstrip("\n"))
    return 0


def plugin_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options `plugins=[...]` among arguments, and the other arguments."""
    named = [one for one in arguments if one.startswith("plugins=")]
    return named, [one for one in arguments if one not in named]


def with_plugins(program: str, options: Sequence[str]) -> int:
    """Load the plug-ins that have consent, those of options `plugins=[...]` included.

    Returns:
        The exit status: 0 done, 2 one is not found.
    """
    from inference.recipe import load_consented, warnings_reported
    from inference.runtime import InputError, report

    try:
        with warnings_reported(program):
            load_consented(options, MOVED)
    except InputError as error:
        report(program, error)
        return 2
    return 0


def schema_text(command: str) -> str:
    """Return the schema of the recipes of `train` or `draw` as JSON."""
    return json.dumps(recipe_schema(command), indent=1, ensure_ascii=False) + "\n"


def recipe_schema(command: str) -> dict[str, Any]:
    """Return the schema of the recipes of `train` or `draw`."""
    from inference.recipe import recipe_json_schema

    roots = [TrainRecipe] if command == "train" else list(DRAWING_RECIPES.values())
    return recipe_json_schema(roots, f"Recipe of `limner {command}`", choices)


def choices(inner: type, owner: type) -> list[type]:
    """Return the classes that a field of type `inner` can have: of objectives, the known ones."""
    if inner is not ObjectiveConfig:
        return [inner]
    known = OBJECTIVE_CONFIGS.values()
    return [one for one in known if one.is_combinable or owner is not MemberConfig]
