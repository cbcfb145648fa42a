"""Killed commands, started again, leave what undisturbed ones do; see scripts/kill_sweep.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.kill_sweep import kinds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kills", "commands"),
    [
        (2, ["images", "conversion to a file"]),
        pytest.param(60, list(kinds()), marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_commands_leave_the_same_bytes_and_nothing_else(
    kills: int, commands: list[str]
) -> None:
    given = ["--kills", str(kills), "--seed", "3", "--only", *commands]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.kill_sweep", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"\ball\s+│ {kills}\s", done.stdout), done.stdout
