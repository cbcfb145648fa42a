"""Processes of gloo encode and decode clips together, to the same bytes as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(processes: int):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}", "WORLD_SIZE": f"{processes}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.inference.parallel.clip_ranks"],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": f"{rank}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    each = 2 * (10 + 2)
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text
        assert f"{each * (1 if processes == 2 else 2)} compared" in text
