"""What both commands have in common: how they speak to the person in front of them."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.errors import DrawWarning
from inference.recipe import RecipeWarning

SHIPPED = Path(__file__).parents[1] / "train" / "configs"
"""Where an installed Limner has the recipes of the clone's configs/."""


def tell(program: str, message: object) -> None:
    """Every line of the message, with the program's name before it, on standard error."""
    for line in str(message).splitlines():
        print(f"{program}: {line}", file=sys.stderr)


def find_recipe(path: str) -> str:
    """The recipe's file: as named, or the shipped one of that name (`configs/lora.yaml`)."""
    shipped = SHIPPED / path.removeprefix("configs/")
    return str(shipped) if not Path(path).is_file() and shipped.is_file() else path


@contextmanager
def warnings_told(program: str) -> Iterator[None]:
    """Warnings to the user are told in one line each, without a place in the program."""

    def show(message: Warning | str, *_: object) -> None:
        tell(program, message)

    with warnings.catch_warnings():
        for category in (RecipeWarning, DrawWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield
