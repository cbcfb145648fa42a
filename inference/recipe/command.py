"""Helpers of the commands: find a recipe, print warnings."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from inference.recipe.layers import RecipeWarning
from inference.runtime import DrawWarning, clone, report


def shipped_recipes() -> Path:
    """Return the folder of the shipped recipes: the clone's `configs/`, or the wheel's copy."""
    folder = clone()
    return folder / "configs" if folder is not None else Path(str(files("train") / "configs"))


def find_recipe(path: str) -> str:
    """Return the recipe's file: as named, or the shipped one of that name (`configs/lora.yaml`)."""
    shipped = shipped_recipes() / path.removeprefix("configs/")
    own, ours = (os.path.isfile(one) for one in (path, shipped))  # noqa: PTH113 (names may be long)
    return str(shipped) if ours and not own else path


@contextmanager
def warnings_reported(program: str, is_silent: bool = False) -> Iterator[None]:
    """Print warnings as one line each, without a source location.

    Those of libraries begin with "warning:". `is_silent`: print none that are meant for the user,
    since another process prints the same ones.
    """

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if not issubclass(category, RecipeWarning | DrawWarning):
            report(program, f"warning: {' '.join(str(message).split())}")
        elif not is_silent:
            report(program, message)

    with warnings.catch_warnings():
        for category in (RecipeWarning, DrawWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield
