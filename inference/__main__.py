"""The command `python -m inference RECIPE|PICTURE [key=value ...]`: generate images.

Only what recipes need is imported here; torch is imported once the recipe is valid.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from inference.config import AnimationRecipe, ClipsRecipe, ImagesRecipe, draw_schema
from inference.recipe import find_recipe, load_recipe, warnings_reported
from inference.runtime import (
    ArtifactError,
    InputError,
    Interrupted,
    Stopped,
    is_first_process,
    keys_named,
    memory_explained,
    output,
    quiet_libraries,
    report,
    report_failure,
    run_command,
)
from inference.shadowing import refuse_foreign_train

USAGE = """usage: python -m inference RECIPE|PICTURE|SETTINGS [key=value ...] [--check]

Generates what a recipe describes, for example
  python -m inference configs/inference/images.yaml images.cat.seed=7 settings.steps=30
An image is generated again from its infotext, with the artifacts in the folders of artifact_dirs:
  python -m inference outputs/00000-7.png 'artifact_dirs=[models]' images.picture.count=4
A settings file of Deforum (.txt, .json) becomes an animation; its keys and the recipe's can be set:
  python -m inference settings.txt max_frames=60 base_model.path=model.safetensors
With --check nothing is generated; a report of what would happen is printed.
Every key is described in docs/recipes.md."""


CHECK = "--check"

RECIPES = ("", ".yaml", ".yml")
SETTINGS_FILES = (".txt", ".json")
"""Suffixes of Deforum's settings files."""


@refuse_foreign_train("draw")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong input, 128 + signal interrupted.
    """
    return run_command("draw", command, arguments)


def command(arguments: list[str]) -> int:
    """Print the usage, check a recipe or generate what it describes; return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        output(USAGE, is_error=not arguments)
        return 0 if arguments else 2
    is_check = CHECK in arguments
    arguments = [argument for argument in arguments if argument != CHECK]
    try:
        with warnings_reported("draw", is_silent=not is_first_process()):
            recipe = load(arguments[0], arguments[1:])
            if is_check:
                output(check(recipe))
                return 0
            quiet_libraries()
            with keys_named(recipe), memory_explained(lambda: memory_remedy(recipe)):
                check_files(recipe)
                run(recipe)
    except FloatingPointError as error:
        report_failure("draw", error)
        return 1
    except Interrupted as stop:
        log(f"{stop}. Continue with resume=true")
        return 128 + stop.number
    except Stopped as stop:
        log(f"{stop}; what was saved before is complete")
        return 128 + stop.number
    except KeyboardInterrupt:
        log("interrupted; what was saved before is complete")
        return 130
    return 0


def log(message: object) -> None:
    """Print a message of which every process has a copy, once."""
    if is_first_process():
        report("draw", message)


def load(path: str, overrides: Sequence[str]) -> object:
    """Load the recipe of a file, or of an image's infotext, whose unsupported parts are logged."""
    suffix = Path(path).suffix.lower()
    if suffix in SETTINGS_FILES:
        from inference.deforum import load_settings_recipe

        return load_settings_recipe(path, overrides)
    if suffix in RECIPES:
        return load_recipe(find_recipe(path), draw_schema, overrides)
    from inference.images import is_picture, load_picture

    if not is_picture(path):
        return load_recipe(find_recipe(path), draw_schema, overrides)
    return load_picture(path, overrides, lambda note: log(f"{path}: {note}"))[0]


def check(recipe: object) -> str:
    """Describe what would be generated, without a model.

    Raises:
        InputError: the recipe is of a type without a check, or a file of it is missing.
    """
    quiet_libraries()
    if isinstance(recipe, ClipsRecipe):
        from inference.clips import report_recipe

        return report_recipe(recipe)
    if not isinstance(recipe, AnimationRecipe):
        raise InputError(
            f"{CHECK}: is for animations and clips; a valid recipe of images needs no report"
        )
    from inference.deforum import recipe_settings, settings_report

    check_files(recipe)
    return settings_report(recipe_settings(recipe), recipe)


def check_files(recipe: object) -> None:
    """Check that the base model and the artifacts exist, before the heavy libraries load.

    Raises:
        InputError: one does not.
    """
    assert isinstance(recipe, ImagesRecipe | AnimationRecipe | ClipsRecipe)
    from inference.models import check_place, check_vae

    check_place(recipe.base_model.path)
    check_vae(recipe.base_model.vae)
    for name, config in recipe.artifacts.items():
        if config is not None and not os.path.exists(Path(config.path).expanduser()):  # noqa: PTH110 (names may be long)
            raise ArtifactError(f"artifacts.{name}.path: {config.path}: no such file or folder")


def run(recipe: object) -> None:
    """Generate what a valid recipe describes."""
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


def memory_remedy(recipe: object) -> str:
    """Return what the memory of generating depends on, with the recipe's values."""
    own = "the model's own"
    match recipe:
        case ImagesRecipe():
            images = [image for image in recipe.images.values() if image is not None]
            sizes = dict.fromkeys(f"{one.width or own} x {one.height or own}" for one in images)
            return (
                f"batch_size is {recipe.batch_size}, the size of the images {', '.join(sizes)}, "
                f"precision {recipe.precision}, memory is {recipe.memory.offload}: lower one of "
                "the first three, or take memory: model_offload or sequential_offload"
            )
        case ClipsRecipe():
            clips = [clip for clip in recipe.clips.values() if clip is not None]
            sizes = dict.fromkeys(
                f"{one.frames or own} frames, {one.width or own} x {one.height or own}"
                for one in clips
            )
            return (
                f"the clips have {', '.join(sizes)}, memory is {recipe.memory.offload}: draw fewer "
                "or smaller frames, or take memory: sequential_offload"
            )
        case AnimationRecipe():
            return (
                f"batch_size is {recipe.batch_size}, precision {recipe.precision}, memory is "
                f"{recipe.memory.offload}: lower one of the first two, draw smaller frames (W, H), "
                "or take memory: model_offload or sequential_offload"
            )
        case _:
            raise AssertionError(f"no way to draw {type(recipe).__name__}")


if __name__ == "__main__":
    sys.exit(main())
