"""Run a trainer's own script unchanged, and let it take its steps in turns.

    python scripts/bench/stepwise.py MODULE_OR_FILE [arguments]

`compare_trainers` starts it. PyTorch's hook after each optimizer step writes a JSON line to the
descriptor STEPWISE_REPORT: user and system CPU seconds and wall seconds since the last step of this
turn, and the largest resident memory so far. After STEPWISE_STEPS steps it waits for a byte of
STEPWISE_GO; at the end of that pipe the process exits at once. Nothing here imports Limner.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

REPORT, GO, STEPS = (int(os.environ[f"STEPWISE_{name}"]) for name in ("REPORT", "GO", "STEPS"))


class Turns:
    """The steps of this process, and where its turn began."""

    def __init__(self) -> None:
        self.count = 0
        self.since = (0.0, 0.0, time.perf_counter())

    def step_taken(self, *_: Any) -> None:
        """Report a step; at the end of a turn wait for the next one."""
        used, now = os.times(), time.perf_counter()
        self.count += 1
        line = {
            "step": self.count,
            "cpu": used.user - self.since[0],
            "system": used.system - self.since[1],
            "wall": now - self.since[2],
            "total_cpu": used.user,
            "peak": peak(),
        }
        os.write(REPORT, (json.dumps(line) + "\n").encode())
        if self.count % STEPS == 0 and not os.read(GO, 1):
            os._exit(0)
        used = os.times()
        self.since = used.user, used.system, time.perf_counter()


def peak() -> int:
    """Return the largest resident memory of this process so far in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(target: str, arguments: list[str]) -> None:
    """Run a script by its path, or a module by its name, as Python would."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    register_optimizer_step_post_hook(Turns().step_taken)
    sys.argv = [target, *arguments]
    is_file = target.endswith(".py")
    sys.path[0] = str(Path(target).parent if is_file else Path.cwd())
    if is_file:
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
