"""Helpers of the commands: find a recipe, print messages and warnings."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from inference.recipe.layers import RecipeWarning
from inference.runtime import DrawWarning, clone, output


def report(program: str, message: object) -> None:
    """Print every line of the message to standard error, prefixed with the program's name."""
    for line in str(message).rstrip("\n").split("\n"):
        output(f"{program}: {line}", is_error=True)


def print_text(text: str) -> None:
    """Print a text; exit quietly if the reader closes the pipe (`| head`)."""
    try:
        output(text)
    except BrokenPipeError:  # else Python reports it again on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shipped_recipes() -> Path:
    """Return the folder of the shipped recipes: the clone's `configs/`, or the wheel's copy."""
    folder = clone()
    return folder / "configs" if folder is not None else Path(str(files("train") / "configs"))


def find_recipe(path: str) -> str:
    """Return the recipe's file: as named, or the shipped one of that name (`configs/lora.yaml`)."""
    shipped = shipped_recipes() / path.removeprefix("configs/")
    own, ours = (os.path.isfile(one) for one in (path, shipped))  # noqa: PTH113 (names may be long)
    return str(shipped) if ours and not own else path


def is_first_process() -> bool:
    """Return whether this is the process (of those accelerate or torchrun started) that prints."""
    return os.environ.get("RANK", "0") == "0"


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
