"""The lists of `make smoke` and `make test-fake-gpu` name tests that exist."""

import ast
import os
import subprocess
import sys
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


def test_without_a_compiler_the_mock_device_is_left_out(tmp_path: Path) -> None:
    """In one line, and `make test` passes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.run_pytest", "--mock", "-n", "2"],
        cwd=ROOT,
        env=os.environ | {"CXX": "no-such-compiler", "MOCK_CUDA_BUILD": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The tests on the mock CUDA device are left out: ")
    assert done.stdout.count("\n") == 1
