"""The drawing command: `python -m inference RECIPE|PICTURE [key=value ...]`.

Only what recipes need is imported here; torch comes once the recipe is known to be sound.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from inference.command import find_recipe, is_first_process, tell, warnings_told
from inference.config import ImagesRecipe, draw_schema
from inference.errors import InputError
from inference.quiet import quiet_libraries
from inference.recipe import load_recipe

USAGE = """usage: python -m inference RECIPE|PICTURE [key=value ...]

Draws what a recipe says, for example
  python -m inference configs/inference/images.yaml images.cat.seed=7 settings.steps=30
A picture is drawn once more, as its infotext says, with what lies in the folders of artifact_dirs:
  python -m inference outputs/00000-7.png 'artifact_dirs=[models]' images.picture.count=4
Every key is described in docs/recipes.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws; returns the exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        with warnings_told("draw", is_silent=not is_first_process()):
            recipe = load(arguments[0], arguments[1:])
            quiet_libraries()
            run(recipe)
    except InputError as error:
        say(error)
        return 2
    except FloatingPointError as error:
        say(error)
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was saved before is complete")
        return 130
    return 0


def say(message: object) -> None:
    """Tells what every process finds out, once."""
    if is_first_process():
        tell("draw", message)


def load(path: str, overrides: Sequence[str]) -> object:
    """The recipe of a file, or the one that a picture tells of; what it cannot do is told."""
    from inference.redraw import is_picture, load_picture

    if not is_picture(path):
        return load_recipe(find_recipe(path), draw_schema, overrides)
    recipe, notes = load_picture(path, overrides)
    for note in notes:
        say(f"{path}: {note}")
    return recipe


def run(recipe: object) -> None:
    """Draws a sound recipe with what its type asks for."""
    match recipe:
        case ImagesRecipe():
            from inference.images import draw_images

            draw_images(recipe)
        case _:
            raise AssertionError(f"no way to draw {type(recipe).__name__}")


if __name__ == "__main__":
    sys.exit(main())
