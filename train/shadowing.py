"""Refuse to run beside a package `inference` that is not Limner's.

`inference.shadowing` is its counterpart. This one imports nothing of `inference`: what would be
imported may be a program of somebody else. Hence it prints by itself, not by `inference.runtime`.
"""

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec

Arguments = ParamSpec("Arguments")


def refuse_foreign_inference(
    program: str,
) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Decorate a command's main: it ends with exit status 2 where `inference` is another package.

    The module of that main must import nothing of `inference` at its top.
    """

    def decorate(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @wraps(main)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                message = foreign_inference()
                if message is None:
                    return main(*args, **kwargs)
            except KeyboardInterrupt:  # before the command itself handles signals
                print(f"{program}: stopped by SIGINT", file=sys.stderr)
                return 130
            print(f"{program}: {shown(message)}", file=sys.stderr)
            return 2

        return run

    return decorate


def shown(message: str) -> str:
    """Return the message with everything escaped that Python does not take for printable."""
    return message if message.isprintable() else repr(message)[1:-1]


def foreign_inference() -> str | None:
    """Return the message if Python finds another package `inference` than the one beside us."""
    expected = Path(__file__).parents[1] / "inference" / "__init__.py"
    spec = find_spec("inference")
    if spec is None:
        return f"Limner's package `inference` is missing: expected {expected.parent}"
    found = Path(spec.origin or next(iter(spec.submodule_search_locations or [""])))
    if found.resolve() == expected.resolve():
        return None
    return (
        f"Python finds {found} as the package `inference`, which hides Limner's {expected.parent}; "
        "rename it, or run the command where it is not on Python's path"
    )
