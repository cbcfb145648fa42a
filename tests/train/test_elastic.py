"""Runs under torchrun: a rank, a node or the launcher is killed or stopped at a random moment.

Nothing is lost: the run goes on from its newest checkpoint, by itself where a launcher is left, and
ends with the bytes of a run that was never interrupted.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import free_port
from tests.train.run_tools import succeed
from tests.train.test_kill_matrix import check_checkpoints, everything

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "max_train_steps=24",
    "saving={save_every_n_steps: 2}",
    "sampling.sample_every_n_steps=12",
    "sampling.images.one.prompt=red",
    "objective={type: lora, rank: 2, dropout: 0.2}",
    "data={flip: 0.5}",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
]
PACE = {"LIMNER_HEARTBEAT_SECONDS": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torchrun does not tell a node that joins later where rank 0 is: the node gives up."""
ROUNDING = 2e-5
"""Of sums in another order, through 24 steps of 0.01 each."""
FOREVER = 240
"""Seconds for two torchruns in turn on a busy machine."""


@dataclass
class Launcher:
    """torchrun, once or several times, on a recipe."""

    recipe: Path
    folder: Path
    options: list[str]
    port: int = field(default_factory=free_port)
    module: tuple[str, ...] = ("-m", "train")
    restarts: int = 3
    last_call: int = 3
    """Seconds to wait for more nodes, once there are enough."""
    variables: dict[str, str] = field(default_factory=dict)
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, nodes: str = "1", ranks: int = 2, is_host: bool = True, *more: str) -> int:
        """Start a node in a process group of its own; return its number."""
        number = len(self.nodes)
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}",
            f"--nproc-per-node={ranks}", f"--max-restarts={self.restarts}", "--rdzv-id=job",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self.port}",
            f"--rdzv-conf=is_host={int(is_host)},last_call_timeout={self.last_call},keep_alive_interval=1",
            "--local-addr=127.0.0.1", "--shutdown-timeout=3", *self.module, str(self.recipe),
            f"output_dir={self.folder}", *self.options, *more,
        ]  # fmt: skip
        with (self.folder / f"node{number}.txt").open("w") as log:
            self.nodes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **PACE, **self.variables}, stdout=log,
                    stderr=log, text=True, start_new_session=True,
                )
            )  # fmt: skip
        return number

    def said(self, node: int = 0) -> str:
        return (self.folder / f"node{node}.txt").read_text()

    def await_run(self, steps: int = 2) -> None:
        """Wait until the run has saved a checkpoint of so many steps."""
        end = time.monotonic() + FOREVER
        while not (self.run / "checkpoints" / f"step-{steps:06d}").is_dir():
            assert time.monotonic() < end and self.nodes[-1].poll() is None, self.said()
            time.sleep(0.02)

    def ranks(self, node: int = 0) -> list[psutil.Process]:
        """Return the ranks of a node, in their order."""
        return sorted(psutil.Process(self.nodes[node].pid).children(), key=lambda one: one.pid)

    def kill(self, node: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a node with all of its processes."""
        for rank in self.ranks(node):  # each has a group of its own
            os.killpg(os.getpgid(rank.pid), number)
        with suppress(ProcessLookupError):
            os.killpg(self.nodes[node].pid, number)

    def end(self, node: int = 0) -> int:
        return self.nodes[node].wait(timeout=FOREVER)

    def close(self) -> None:
        for number, node in enumerate(self.nodes):
            with suppress(psutil.NoSuchProcess):
                self.kill(number)
            node.wait()


@pytest.fixture
def launcher(recipe_file: Path, tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(recipe_file, tmp_path, OPTIONS)
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def expected(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    succeed(commands.train_on_two(f"output_dir={folder}", *OPTIONS))
    return folder / "run"


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-000024" / "trained.safetensors")


def strike_rank(launcher: Launcher, rng: random.Random) -> None:
    """Kill or stop one rank: torchrun starts both again."""
    launcher.start()
    launcher.await_run()
    time.sleep(rng.uniform(0, 1))
    with suppress(psutil.NoSuchProcess, IndexError):  # the run was faster
        rng.choice(launcher.ranks()).send_signal(rng.choice([signal.SIGKILL, signal.SIGSTOP]))
    assert launcher.end() == 0, launcher.said()


def strike_node(launcher: Launcher, rng: random.Random) -> None:
    """Kill a node; another one takes its place."""
    launcher.variables = OWN_STORE
    launcher.start("2", 1)
    launcher.start("2", 1, False)
    launcher.await_run()
    time.sleep(rng.uniform(0, 1))
    launcher.kill(1)
    if launcher.nodes[0].poll() is None:
        launcher.start("2", 1, False)
        assert launcher.end(2) == 0, launcher.said(0) + launcher.said(2)
    assert launcher.end(0) == 0, launcher.said(0)


def strike_launcher(launcher: Launcher, rng: random.Random) -> None:
    """Kill the launcher: its ranks end by themselves, and the next one resumes the run."""
    launcher.start()
    launcher.await_run()
    time.sleep(rng.uniform(0, 1))
    ranks = launcher.ranks()
    launcher.nodes[0].kill()
    _, left = psutil.wait_procs(ranks, timeout=60)
    assert not left, launcher.said()
    launcher.port = free_port()
    launcher.start("1", 2, True, "resume=true")
    assert launcher.end(1) == 0, launcher.said(1)


STRIKES: tuple[Callable[[Launcher, random.Random], None], ...] = (
    strike_rank,
    strike_node,
    strike_launcher,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_kills_lose_nothing(seed: int, launcher: Launcher, expected: Path) -> None:
    STRIKES[seed % len(STRIKES)](launcher, random.Random(seed))
    check_checkpoints(launcher.run)
    assert everything(launcher.run) == everything(expected)
    assert not (launcher.run / "run.lock").exists()


SAME_BATCH = """
import os, sys
from train.__main__ import main
sys.exit(main([*sys.argv[1:], f"gradient_accumulation_steps={2 // int(os.environ['WORLD_SIZE'])}"]))
"""


@pytest.mark.slow
def test_a_lost_node_leaves_the_run_to_the_other(launcher: Launcher, expected: Path) -> None:
    """It goes on from the newest checkpoint; sums are in another order."""
    script = launcher.folder / "same_batch.py"
    script.write_text(SAME_BATCH)
    launcher.module, launcher.last_call = (str(script),), 40
    launcher.variables = {**OWN_STORE, "PYTHONPATH": str(ROOT)}
    launcher.start("1:2", 1)
    launcher.start("1:2", 1, False)
    launcher.await_run()
    launcher.kill(1)
    assert launcher.end(0) == 0, launcher.said(0)
    assert "processes: 2 became 1" in launcher.said(0)
    one, two = (last_weights(run) for run in (launcher.run, expected))
    difference = max(float((value - two[name]).abs().max()) for name, value in one.items())
    print(f"largest difference: {difference:.1e}")
    assert one.keys() == two.keys() and difference < ROUNDING


@pytest.mark.slow
def test_a_lost_rank_is_named_once(launcher: Launcher) -> None:
    """torchrun ends the other one by SIGTERM, which is not called a stop."""
    launcher.options = [*OPTIONS, "max_train_steps=2000"]
    launcher.start()
    launcher.await_run()
    launcher.ranks()[1].kill()
    end = time.monotonic() + 60
    while "another process of this run has ended" not in launcher.said():
        assert time.monotonic() < end, launcher.said()
        time.sleep(0.05)
    said = [line for line in launcher.said().splitlines() if line.startswith("train: ")]
    assert len(said) == 1 and "rank 1 of host " in said[0], said


@pytest.mark.slow
def test_an_old_run_is_still_refused(launcher: Launcher, expected: Path) -> None:
    """However often the launcher tries: only a run that it has begun is resumed."""
    shutil.copytree(expected, launcher.run, symlinks=True)
    launcher.restarts = 1
    launcher.start()
    assert launcher.end() != 0
    assert "contains a run already: resume=true continues it" in launcher.said()
    assert everything(launcher.run) == everything(expected)
