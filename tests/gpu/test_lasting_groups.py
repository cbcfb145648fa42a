# SPDX-License-Identifier: Apache-2.0
"""Two processes on mock devices, by a mock of NCCL whose watchdog aborts: previews may take long.

10 minutes of NCCL's own time-out take 4 s here.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.train.conftest import free_port

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "max_train_steps=3",
    "saving={save_every_n_steps: 1}",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "objective={type: lora, rank: 2}",
]
SCALED = {"MOCK_NCCL_SCALE": "4:600", "MOCK_NCCL_WATCHDOG": "1", "LIMNER_HEARTBEAT_SECONDS": "1"}
ABORTS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"}
"""NCCL's default, in place of Limner's."""

START = """
    import os, signal, sys, time
    from datetime import timedelta
    from tests.gpu import mock_cuda
    mock_cuda.install(devices=2)
    from tests.gpu import mock_nccl
    mock_nccl.install()
    mock_nccl.without_timer()
    from train.optimization import accelerator
    from train.monitoring.reports import Previews
    from train.trainer import Trainer
    {change}
    from train.__main__ import main
    sys.exit(main(sys.argv[1:]))
"""
SLOW_PREVIEWS = """
    draw = Previews.draw
    def draw_slowly(self, *arguments):
        if os.environ["RANK"] == "0":
            time.sleep(10)
        return draw(self, *arguments)
    Previews.draw = draw_slowly
"""
WITHOUT_THE_LONG_WAIT = """
    accelerator.LONGEST_WAIT = timedelta(seconds=600)
"""
IN_STEP_3 = """
    step = Trainer.forward_backward
    def strike(self, batch):
        if os.environ["RANK"] == "1" and self.step_number == 2:
            {what}
        step(self, batch)
    Trainer.forward_backward = strike
"""


def train(recipe: Path, folder: Path, change: str, **more: str) -> list[tuple[int, str]]:
    """Return statuses and messages of two processes; the second may be stopped for good."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    code = textwrap.dedent(START).format(change=textwrap.dedent(change))
    command = [sys.executable, "-c", code, str(recipe), f"output_dir={folder}", *OPTIONS]
    ranks = [
        subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, **SCALED, **shared, **more, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    first = ranks[0].communicate(timeout=300)[1]
    end = time.monotonic() + 60
    while ranks[1].poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if ranks[1].poll() is None:
        ranks[1].kill()
    return [(ranks[0].returncode, first), (ranks[1].wait(), ranks[1].communicate()[1])]


def said(text: str) -> list[str]:
    """Return Limner's messages, without warnings."""
    lines = (line for line in text.splitlines() if line.startswith("train: "))
    return [line for line in lines if "warning: " not in line]


@pytest.mark.slow
def test_previews_longer_than_nccls_time_out(recipe_file: Path, tmp_path: Path) -> None:
    """They pass, by the group's own long time-out alone; without it NCCL ends the run."""
    done = train(recipe_file, tmp_path / "long", SLOW_PREVIEWS, **ABORTS)
    assert [status for status, _ in done] == [0, 0], done
    short = train(recipe_file, tmp_path / "short", SLOW_PREVIEWS + WITHOUT_THE_LONG_WAIT, **ABORTS)
    assert short[1][0] == -signal.SIGABRT, short
    assert "taking the entire process down" in short[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_is_named_though_nccl_waits(
    name: str, recipe_file: Path, tmp_path: Path
) -> None:
    """The main thread never returns from the collective; the heartbeat ends the process."""
    what = f"os.kill(os.getpid(), signal.{name})"
    done = train(recipe_file, tmp_path, IN_STEP_3.format(what=what))
    assert done[0][0] == 1, done
    (line,) = said(done[0][1])
    assert "train: rank 1 of host " in line and "no sign of life for 9 s (it was at " in line
    assert line.endswith("resume=true continues from the newest checkpoint")
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.slow
def test_a_hang_is_ended_with_the_places(recipe_file: Path, tmp_path: Path) -> None:
    done = train(
        recipe_file, tmp_path, IN_STEP_3.format(what="time.sleep(1000)"), LIMNER_HUNG_SECONDS="4"
    )
    assert [status for status, _ in done] == [1, 1], done
    (line,) = said(done[0][1] + done[1][1])
    assert "no process has made progress for" in line
    assert "rank 1 of host" in line and "(strike)" in line
