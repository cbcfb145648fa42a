"""The shipped files of launchers: accelerate's config files, and the scripts of clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.conftest import free_port

ROOT = Path(__file__).parents[2]
ACCELERATE = ROOT / "configs" / "accelerate"
CLUSTER = ROOT / "configs" / "cluster"

FILES: dict[str, tuple[str, int, int]] = {
    "cpu": ("NO", 1, 1),
    "one_gpu": ("NO", 1, 1),
    "two_cpus": ("MULTI_GPU", 2, 1),
    "two_gpus": ("MULTI_GPU", 2, 1),
    "eight_gpus": ("MULTI_GPU", 8, 1),
    "two_nodes": ("MULTI_GPU", 16, 2),
    "fsdp2": ("FSDP", 8, 1),
    "zero2": ("DEEPSPEED", 8, 1),
    "zero3": ("DEEPSPEED", 8, 1),
}
"""Name of a file -> (distributed_type, num_processes, num_machines)."""


def test_every_file_is_listed() -> None:
    assert {path.stem for path in ACCELERATE.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_the_file(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = ACCELERATE / f"{name}.yaml"
    config: Any = load_config_from_file(str(path))
    found = (config.distributed_type.value, config.num_processes, config.num_machines)
    assert found == FILES[name]
    assert config.use_cpu == (name == "cpu")
    assert config.mixed_precision is None and not config.dynamo_config  # the recipe has these
    assert bool(config.fsdp_config) == (name == "fsdp2")
    assert config.fsdp_config.get("fsdp_version", 2) == 2
    stage = {"zero2": 2, "zero3": 3}.get(name)
    assert config.deepspeed_config.get("zero_stage") == stage
    comment = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    assert f"--config_file configs/accelerate/{name}.yaml" in "\n".join(comment)


LAUNCHED: dict[str, tuple[list[list[str]], int]] = {
    "cpu": ([[]], 1),
    "two_cpus": ([[]], 2),
    "two_gpus": ([[]], 2),
    "eight_gpus": ([["--num_processes", "2"]], 2),
    "two_nodes": ([["--num_processes", "2", "--machine_rank", rank] for rank in "01"], 2),
    "fsdp2": ([["--num_processes", "2"]], 2),
    "zero2": ([["--num_processes", "2"]], 2),
    "zero3": ([["--num_processes", "2"]], 2),
}
"""Files that processes on CPUs can stand for -> (options of each launcher, processes)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHED)
def test_the_run_reports_the_processes_of_the_file(
    name: str, recipe_file: Path, tmp_path: Path
) -> None:
    """accelerate starts one process where it takes several for one; the run itself knows."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    launchers, processes = LAUNCHED[name]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    port = [] if processes == 1 else ["--main_process_port", str(free_port())]
    config = ["--config_file", f"configs/accelerate/{name}.yaml", *port]
    command = ["-m", "train", str(recipe_file), f"output_dir={tmp_path}", "max_train_steps=1"]
    command += ["objective={type: lora, rank: 2}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*launcher, *config, *options, *command], cwd=ROOT, env=environment)
        for options in launchers
    ]
    assert [one.wait(timeout=170) for one in started] == [0] * len(started)
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["processes"] == processes


# Clusters


STUBS = {
    "torchrun": 'while [ "$1" != --no_python ]; do shift; done; shift; RANK=3 exec "$@"',
    "srun": 'while [ "$1" != torchrun ]; do shift; done; exec "$@"',
    "python": 'echo "$@" > "$SEEN"; exit "$STATUS"',
    "scontrol": 'echo "$@" >> "$SEEN.scontrol"; [ "$1" = show ] && echo first && echo second',
}


@pytest.mark.parametrize(
    ("status", "ends", "requeued"), [(0, 0, False), (138, 0, True), (143, 0, True), (1, 1, False)]
)
def test_a_job_that_is_cut_goes_back_into_the_queue(
    status: int, ends: int, requeued: bool, tmp_path: Path
) -> None:
    """By the status of a process, which torchrun keeps to itself. Slurm's commands are stubs."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    seen = tmp_path / "seen"
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SEEN": str(seen),
        "STATUS": str(status),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "nodes",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    command = ["bash", str(CLUSTER / "train.sbatch"), "a recipe.yaml", "name=x y"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == ends, done.stderr
    assert seen.read_text() == "-m train a recipe.yaml name=x y resume=true\n"
    asked = (tmp_path / "seen.scontrol").read_text().splitlines()
    assert ("requeue 7" in asked) == requeued
    assert not (tmp_path / ".limner-7").exists()


def test_the_script_is_sound_and_asks_for_a_recipe() -> None:
    script = str(CLUSTER / "train.sbatch")
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert subprocess.run(["bash", script], capture_output=True).returncode == 2


def test_the_task_of_skypilot_is_sound(tmp_path: Path) -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text("utf-8"))
    assert task.keys() <= {
        "name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"
    }  # fmt: skip
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n", "-c", task[part]]).returncode == 0
    assert (ROOT / task["envs"]["RECIPE"]).is_file()
    assert "resume=true" in task["run"]
