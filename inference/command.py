"""What both commands have in common: how they speak to the person in front of them."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from inference.recipe import RecipeWarning


def tell(program: str, message: object) -> None:
    """Every line of the message, with the program's name before it, on standard error."""
    for line in str(message).splitlines():
        print(f"{program}: {line}", file=sys.stderr)


@contextmanager
def warnings_told(program: str) -> Iterator[None]:
    """Options without effect are told in one line each, without a place in the program."""

    def show(message: Warning | str, *_: object) -> None:
        tell(program, message)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RecipeWarning)
        warnings.showwarning = show
        yield
