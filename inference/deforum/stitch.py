"""`python -m inference.deforum.stitch FOLDER [key=value ...]`: videos from existing frames.

For a run that was stopped, or for another video: frame rate, sound, GIF, quality.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from inference.deforum.settings import load_settings_recipe, recipe_settings
from inference.recipe import warnings_reported
from inference.runtime import InputError, output, run_command
from inference.shadowing import refuse_foreign_train

USAGE = """usage: python -m inference.deforum.stitch FOLDER|SETTINGS [key=value ...]

Writes the videos of an animation's frames again, with its settings; for example
  python -m inference.deforum.stitch outputs/animations/cats fps=24 make_gif=true crf=12"""


@refuse_foreign_train("stitch")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 2 wrong input."""
    return run_command("stitch", command, arguments)


def command(arguments: list[str]) -> int:
    """Print the usage, or write the videos of a run again; return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        output(USAGE, is_error=not arguments)
        return 0 if arguments else 2
    with warnings_reported("stitch"):
        stitch(Path(arguments[0]), arguments[1:])
    return 0


def stitch(path: Path, overrides: Sequence[str] = ()) -> None:
    """Write the videos of a run again.

    Args:
        path: the run's folder, or the settings file in it.
        overrides: `key=value` of the settings or of the recipe.

    Raises:
        InputError: there is no run, or it has no frames.
    """
    from inference.deforum.loop import State, load_state
    from inference.deforum.products import SETTINGS, Products, RunFolder, check_products
    from inference.deforum.schedules import Script

    files = sorted(path.glob("*_settings.txt")) if path.is_dir() else [path]
    named = [found for file in files if (found := SETTINGS.fullmatch(file.name))]
    if not named or not files[-1].is_file():
        raise InputError(f"{path}: has no settings file of a run (TIMESTRING_settings.txt)")
    if len(named) > 1:
        names = ", ".join(match[0] for match in named)
        raise InputError(f"{path}: has several runs; name one of their files: {names}")
    run = RunFolder(files[-1].parent, named[0][1])
    if not run.frames():
        raise InputError(f"{run.path}: has no frames {run.timestring}_000000000.png …")
    recipe = load_settings_recipe(str(run.settings), overrides)
    script = Script(recipe_settings(recipe), recipe.compat, run.path, (), run.timestring)
    check_products(script, recipe)
    state = load_state(run.state)[0] if run.state.is_file() else State()
    Products(script, run, recipe, output, state).make()


if __name__ == "__main__":
    sys.exit(main())
