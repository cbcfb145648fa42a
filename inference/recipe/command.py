"""What both commands have in common: how they speak to the person in front of them."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from inference.recipe.loader import RecipeWarning
from inference.runtime import DrawWarning, clone


def report(program: str, message: object) -> None:
    """Every line of the message, with the program's name before it, on standard error."""
    for line in str(message).splitlines():
        print(f"{program}: {line}", file=sys.stderr)


def print_text(text: str) -> None:
    """Print a text; end quietly where the reader has seen enough of it (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # else Python complains once more when it ends
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
    """Of several that accelerate (or torchrun) started the first says what all find out."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def warnings_reported(program: str, is_silent: bool = False) -> Iterator[None]:
    """Warnings to the user are told in one line each, without a place in the program.

    Others are shown as they were. `is_silent`: another process tells the same.
    """
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if not issubclass(category, RecipeWarning | DrawWarning):
            usual(message, category, *where)
        elif not is_silent:
            report(program, message)

    with warnings.catch_warnings():
        for category in (RecipeWarning, DrawWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield
