"""Packages whose public names load when they are used (PEP 562).

A wrong recipe is reported before torch is imported, so the `__init__` of a package must not import
the modules that it exports from. It lists them under `if TYPE_CHECKING:`, where type checkers look,
and `lazy` imports from there.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy(package: str, file: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, which imports public names when they are used.

    Args:
        package: the package's `__name__`.
        file: its `__file__`; the imports under `if TYPE_CHECKING:` say where each name is defined.
    """

    def load(name: str) -> Any:
        module = _modules(file).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


@cache
def _modules(file: str) -> dict[str, str]:
    """Return the module of each name that is imported under `if TYPE_CHECKING:`."""
    return {
        alias.name: imported.module
        for block in ast.parse(Path(file).read_text("utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for imported in block.body
        if isinstance(imported, ast.ImportFrom) and imported.module
        for alias in imported.names
    }
