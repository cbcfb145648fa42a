"""The drawing command: `python -m inference RECIPE|PICTURE [key=value ...]`.

Only what recipes need is imported here; torch comes once the recipe is known to be sound.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from inference.config import AnimationRecipe, ClipsRecipe, ImagesRecipe, draw_schema
from inference.recipe import find_recipe, is_first_process, load_recipe, report, warnings_reported
from inference.runtime import InputError, Interrupted, quiet_libraries
from inference.shadowing import refuse_foreign_train

USAGE = """usage: python -m inference RECIPE|PICTURE|SETTINGS [key=value ...] [--check]

Draws what a recipe says, for example
  python -m inference configs/inference/images.yaml images.cat.seed=7 settings.steps=30
A picture is drawn once more, as its infotext says, with what lies in the folders of artifact_dirs:
  python -m inference outputs/00000-7.png 'artifact_dirs=[models]' images.picture.count=4
A settings file of Deforum (.txt, .json) is drawn as an animation, with its keys or the recipe's:
  python -m inference settings.txt max_frames=60 base_model.path=model.safetensors
With --check nothing is drawn: what would happen is printed.
Every key is described in docs/recipes.md."""


CHECK = "--check"

RECIPES = ("", ".yaml", ".yml")
SETTINGS_FILES = (".txt", ".json")
"""Endings of Deforum's settings files."""


@refuse_foreign_train("draw")
def main(arguments: Sequence[str] | None = None) -> int:
    """Draws; returns the exit status: 0 done, 1 failed, 2 wrong input, 130 or 143 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    is_check = CHECK in arguments
    arguments = [argument for argument in arguments if argument != CHECK]
    try:
        with warnings_reported("draw", is_silent=not is_first_process()):
            recipe = load(arguments[0], arguments[1:])
            if is_check:
                print(told(recipe))
                return 0
            quiet_libraries()
            run(recipe)
    except InputError as error:
        say(error)
        return 2
    except FloatingPointError as error:
        say(error)
        return 1
    except Interrupted as stop:
        say(f"{stop}; resume=true goes on")
        return 128 + stop.number
    except KeyboardInterrupt:
        say("interrupted; what was saved before is complete")
        return 130
    return 0


def say(message: object) -> None:
    """Tells what every process finds out, once."""
    if is_first_process():
        report("draw", message)


def load(path: str, overrides: Sequence[str]) -> object:
    """The recipe of a file, or the one that a picture tells of; what it cannot do is told."""
    suffix = Path(path).suffix.lower()
    if suffix in SETTINGS_FILES:
        from inference.deforum import load_settings_recipe

        return load_settings_recipe(path, overrides)
    if suffix in RECIPES:
        return load_recipe(find_recipe(path), draw_schema, overrides)
    from inference.images import is_picture, load_picture

    if not is_picture(path):
        return load_recipe(find_recipe(path), draw_schema, overrides)
    recipe, notes = load_picture(path, overrides)
    for note in notes:
        say(f"{path}: {note}")
    return recipe


def told(recipe: object) -> str:
    """What would be drawn, without a model.

    Raises:
        InputError: the recipe is of a type that cannot tell.
    """
    if isinstance(recipe, ClipsRecipe):
        from inference.clips import report_recipe

        return report_recipe(recipe)
    if not isinstance(recipe, AnimationRecipe):
        raise InputError(
            f"{CHECK}: is of animations and clips; a sound recipe of images says all itself"
        )
    from inference.deforum import recipe_settings, settings_report

    return settings_report(recipe_settings(recipe))


def run(recipe: object) -> None:
    """Draws a sound recipe with what its type asks for."""
    match recipe:
        case ImagesRecipe():
            from inference.images import draw_images

            draw_images(recipe)
        case AnimationRecipe():
            from inference.deforum import draw_animation

            with warnings_reported("draw"):
                draw_animation(recipe)
        case ClipsRecipe():
            from inference.clips import draw_recipe

            draw_recipe(recipe)
        case _:
            raise AssertionError(f"no way to draw {type(recipe).__name__}")


if __name__ == "__main__":
    sys.exit(main())
