"""JSON Schemas of recipes: `limner schema train|draw`."""

import json
from collections.abc import Sequence
from typing import Any

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
    from train.config.schema import MOVED

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
    from inference.config import DRAWING_RECIPES
    from inference.recipe import recipe_json_schema
    from train.config.recipe import TrainRecipe

    roots = [TrainRecipe] if command == "train" else list(DRAWING_RECIPES.values())
    return recipe_json_schema(roots, f"Recipe of `limner {command}`", choices)


def choices(inner: type, owner: type) -> list[type]:
    """Return the classes that a field of type `inner` can have: of objectives, the known ones."""
    from train.config.objectives import OBJECTIVE_CONFIGS, MemberConfig, ObjectiveConfig

    if inner is not ObjectiveConfig:
        return [inner]
    known = OBJECTIVE_CONFIGS.values()
    return [one for one in known if one.is_combinable or owner is not MemberConfig]
