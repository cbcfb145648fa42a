"""The comparison of trainers, and steps of full-size models: on tiny ones, without peers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inference.models.names import ASSETS
from scripts.bench.compare_trainers import Command, Job, summary, table


def test_the_table_gives_shares_of_the_peers() -> None:
    jobs = [Job(Command(name, "x", [], Path()), 8, Path()) for name in ("Limner", "kohya")]
    for job, factor in zip(jobs, (1.0, 2.0), strict=True):
        steps = [{"cpu": cpu, "system": 0.0, "wall": 9.0} for cpu in (1.0, 3.0, 100.0)]
        job.taken = [{key: value * factor for key, value in step.items()} for step in steps]
        job.peak, job.seconds = 2**30 * factor, (10.0 * factor, 8.0)
    lines = table([summary(job) for job in jobs]).splitlines()
    assert lines[2] == "| Limner | 3.00 | 0.00 | 9.00 | 1.00 | 10.00 | 8.00 |"
    assert lines[3].startswith("| kohya | 6.00 (0.50) | 0.00 (0.00) | 18.00 (0.50) | 2.00 (0.50)")
    assert lines[3].endswith("| 20.00 (0.50) | 8.00 (1.00) |")


def test_a_trainer_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no such option')\n")
    job = Job(Command("peer", str(script), [], tmp_path), 1, tmp_path)
    with pytest.raises(SystemExit, match=r"peer ended:\n(?s:.*)no such option"):
        job.start()
    job.stop()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["lora", "textual_inversion"])
def test_limner_takes_its_turns(objective: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench.compare_trainers"]
    command += ["--base", str(ASSETS / "picto"), "--objective", objective, "--size", "64"]
    command += ["--steps", "2", "--turns", "2", "--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["steps"] == 4 and row["cpu"] > 0 and row["first_step"] > row["first_step_cpu"] / 2


@pytest.mark.slow
def test_objectives_take_a_step(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench.full_size_steps"]
    names = ["lora", "dreambooth"]
    command += ["--base", str(ASSETS / "picto"), "--size", "64", "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:]
    assert [row.split()[1] for row in rows] == names
