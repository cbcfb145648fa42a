"""Refuse to run beside a package `train` that is not Limner's.

`train.shadowing` is its counterpart: each package looks for the other without importing it, so that
no line of a foreign package runs.
"""

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec

from inference.runtime import output

Arguments = ParamSpec("Arguments")


def refuse_foreign_train(
    program: str,
) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Decorate a command's main: it ends with exit status 2 where `train` is another package."""

    def decorate(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @wraps(main)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                message = foreign_train()
                if message is None:
                    return main(*args, **kwargs)
            except KeyboardInterrupt:  # before the command itself handles signals
                output(f"{program}: stopped by SIGINT", is_error=True)
                return 130
            output(f"{program}: {message}", is_error=True)
            return 2

        return run

    return decorate


def foreign_train() -> str | None:
    """Return the message if Python finds another package `train` than the one beside this one."""
    spec = find_spec("train")
    if spec is None:  # drawing works without it
        return None
    found = Path(spec.origin or next(iter(spec.submodule_search_locations or [""])))
    expected = Path(__file__).parents[1] / "train" / "__init__.py"
    if found.resolve() == expected.resolve():
        return None
    return (
        f"Python finds {found} as the package `train`, which hides Limner's {expected.parent}; "
        "rename it, or run the command where it is not on Python's path"
    )
