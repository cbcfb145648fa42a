"""The lists of `make smoke` and `make test-fake-gpu` name tests that exist."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", ["smoke.txt", "gpu/choice.txt"])
def test_every_test_of_the_list_exists(file: str) -> None:
    """A test that was renamed or moved would be noticed only by the next run of the list."""
    names = (ROOT / "tests" / file).read_text("utf-8").splitlines()
    assert names == sorted(set(names))
    for name in names:
        path, _, function = name.partition("[")[0].partition("::")
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, name
