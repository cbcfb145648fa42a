"""Libraries of extras: one message where one is missing, and every extra named exists."""

import ast
import tomllib
from pathlib import Path

import pytest

from inference.runtime import InputError, require

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())


def test_a_missing_library_is_one_message() -> None:
    expected = r"^animations need Nothing, which is not installed: pip install 'limner\[anim\]'$"
    with pytest.raises(InputError, match=expected):
        require("no_such_library", "animations", "Nothing", "anim")


def test_an_installed_library_is_its_module() -> None:
    assert require("json", "files", "json", "anim").loads("1") == 1


def test_every_extra_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"]
    named = [
        node.args[3].value
        for folder in ("train", "inference")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "require"
        and isinstance(node.args[3], ast.Constant)
    ]
    assert len(named) >= 5
    assert set(named) <= set(known)
