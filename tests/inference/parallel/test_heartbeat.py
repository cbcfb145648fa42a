"""Processes that meet in a real store: one is killed, stopped, hangs, breaks, or does not come."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import all_reduce, init_process_group

from inference.parallel import SIGNS, group_address, joined
from inference.parallel.groups import find_meeting
from inference.parallel.heartbeat import HUNG, INTERVAL, RENDEZVOUS, Pace, Signs
from inference.runtime import InputError
from inference.runtime.command import status_of
from tests.train.conftest import free_port

HOST = socket.gethostname()
Work = Callable[[], None]


@dataclass
class Job:
    """Processes forked from this one, each a rank."""

    folder: Path
    size: int = 2
    interval: float = 0.1
    variables: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    pids: dict[int, int] = field(default_factory=dict)

    def start(self, rank: int, work: Work, meets: bool = True) -> None:
        pid = os.fork()
        if pid:
            self.pids[rank] = pid
            return
        status = 70
        try:
            file = os.open(self.folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
            shared |= {"WORLD_SIZE": str(self.size), "RANK": str(rank)}
            os.environ |= {**shared, INTERVAL: str(self.interval), **self.variables}
            status = status_of("train", lambda: run(work) if meets else work() or 0)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def run(self, *works: Work) -> "Job":
        for rank, work in enumerate(works):
            self.start(rank, work)
        return self

    def status(self, rank: int, seconds: float = 10) -> int:
        """Return the exit status of a rank, which ends by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
            if pid:
                del self.pids[rank]
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise AssertionError(f"rank {rank} has not ended: {self.said(rank)}")

    def said(self, rank: int) -> str:
        """Return what a rank has printed, without torch's own warnings of lost connections."""
        lines = (self.folder / f"{rank}.err").read_text().splitlines(keepends=True)
        return "".join(line for line in lines if line.startswith(("train: ", "Traceback")))


def run(work: Work) -> int:
    with joined("train", "resume=true continues"):
        work()
    return 0


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    for pid in job.pids.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def steps(count: int = 3) -> None:
    for number in range(count):
        SIGNS.note(f"step {number + 1}")


def hangs() -> None:
    steps()
    time.sleep(60)


def strikes(number: signal.Signals) -> Work:
    def work() -> None:
        steps()
        time.sleep(0.4)  # beats say so
        os.kill(os.getpid(), number)

    return work


def breaks() -> None:
    steps()
    raise ValueError("broken")


def test_whoever_has_done_its_work_is_not_lost(job: Job) -> None:
    """The process with the store stays until the others have ended too."""
    job.interval = 0.3
    job.run(steps, lambda: time.sleep(1.0))
    assert [job.status(rank) for rank in (1, 0)] == [0, 0]
    assert [job.said(rank) for rank in (0, 1)] == ["", ""]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_process_that_is_gone_or_stopped_ends_the_others(job: Job, number: int) -> None:
    job.run(hangs, strikes(signal.Signals(number)))
    assert job.status(0) == 1
    assert job.said(0) == (
        f"train: rank 1 of host {HOST} has given no sign of life for 0.9 s (it was at step 3); "
        "resume=true continues\n"
    )


def test_the_process_with_the_store_is_gone(job: Job) -> None:
    job.run(strikes(signal.SIGKILL), hangs)
    assert job.status(1) == 1
    assert job.said(1) == (
        f"train: rank 0 of host {HOST} is lost (it was at step 3): the store at 127.0.0.1:"
        f"{job.port} has closed; resume=true continues\n"
    )


@pytest.mark.slow
def test_the_process_with_the_store_is_stopped(job: Job) -> None:
    job.run(strikes(signal.SIGSTOP), hangs)
    assert job.status(1) == 1
    assert f"rank 0 of host {HOST} is lost (it was at step 3): the store at" in job.said(1)
    assert "does not answer; resume=true continues" in job.said(1)


def test_the_others_say_why_one_has_ended(job: Job) -> None:
    job.run(hangs, breaks)
    assert job.status(0) == 1
    assert job.said(0) == (
        f"train: another process of this run has ended: rank 1 of host {HOST} (at step 3): "
        "ValueError: broken; resume=true continues\n"
    )


def test_all_hang(job: Job) -> None:
    """One of them says so, with the places."""
    job.variables[HUNG] = "0.6"
    job.run(hangs, hangs)
    assert [job.status(rank) for rank in (0, 1)] == [1, 1]
    (line,) = (job.said(0) + job.said(1)).splitlines()
    assert line.startswith("train: no process has made progress for 0.6 s: rank 0 of host ")
    assert line.count("test_heartbeat.py") == 2 and line.count("(hangs)") == 2


def test_stated_long_work_is_no_hang(job: Job) -> None:
    job.variables[HUNG] = "0.3"

    def draws() -> None:
        steps()
        with SIGNS.at_length("drawing previews"):
            time.sleep(1.2)

    def waits() -> None:
        steps()
        time.sleep(1.2)

    job.run(draws, waits)
    assert [job.status(rank) for rank in (1, 0)] == [0, 0]


def test_nobody_is_where_the_processes_are_to_meet(job: Job) -> None:
    job.variables[RENDEZVOUS] = "0.5"
    job.start(1, steps)
    assert job.status(1) == 2
    assert job.said(1).startswith(
        f"train: MASTER_ADDR:MASTER_PORT: rank 1 of 2 has not reached 127.0.0.1:{job.port} within "
        "0.5 s ([Errno 111] Connection refused). Check that rank 0 runs on that host"
    )


def test_the_port_is_taken(job: Job) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        job.port = taken.getsockname()[1]
        job.variables[RENDEZVOUS] = "0.5"
        job.start(0, steps)
        assert job.status(0) == 2
    assert f"rank 0 cannot listen at 127.0.0.1:{job.port}, where the 2 processes" in job.said(0)


def test_those_that_do_not_come_are_named(job: Job) -> None:
    job.size = 4
    job.variables[RENDEZVOUS] = "0.8"
    job.run(steps, steps)
    assert [job.status(rank) for rank in (0, 1)] == [1, 1]
    expected = (
        f"train: 2 of 4 processes have come to 127.0.0.1:{job.port} (MASTER_ADDR:MASTER_PORT) "
        "within 0.8 s; missing: rank 2, 3. "
    )
    assert job.said(0).startswith(expected) and job.said(1).startswith(expected)


@pytest.mark.slow
def test_the_store_of_a_launcher_has_what_an_earlier_start_has_left(job: Job) -> None:
    """Neither its beats nor the addresses of its process group are taken for present ones."""
    job.variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    job.port = store.port

    def adds() -> None:
        init_process_group("gloo", init_method=group_address())
        total = torch.ones(1)
        all_reduce(total)
        assert total.item() == 2
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        job.run(adds, adds)
        assert [job.status(rank) for rank in (0, 1)] == [-9, -9], job.said(0) + job.said(1)


@pytest.mark.slow
def test_a_store_that_is_stopped_before_they_meet(job: Job) -> None:
    job.variables[RENDEZVOUS] = "0.8"

    def hosts() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", job.port))
            listener.listen()
            time.sleep(30)

    job.start(0, hosts, meets=False)
    time.sleep(0.2)
    job.start(1, steps)
    assert job.status(1) == 1
    assert "has not answered within 0.8 s: rank 0 there is stopped" in job.said(1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2, and MASTER_ADDR is not set: start the processes"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT: expected a whole number, got 'x'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT: expected 1 to 65535, got 70000"),
        ({"RANK": "2"}, "RANK: expected less than WORLD_SIZE 2, got 2"),
    ],
)
def test_variables_that_a_launcher_sets(wrong: dict[str, str], message: str) -> None:
    right = {"MASTER_ADDR": "here", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "0"}
    assert find_meeting(right).is_host
    assert not find_meeting({**right, "TORCHELASTIC_USE_AGENT_STORE": "True"}).is_host
    with pytest.raises(InputError, match=message):
        find_meeting({**right, **wrong})


def test_the_pace_can_be_set() -> None:
    assert (Pace.of({}).lost, Pace.of({}).hung, Pace.of({}).rendezvous) == (45, 600, 60)
    assert Pace.of({INTERVAL: "0.5", HUNG: "0"}) == Pace(0.5, 0.0, 60.0)
    for wrong in ("x", "0", "-1"):
        with pytest.raises(InputError, match=f"{INTERVAL}: expected a number of seconds"):
            Pace.of({INTERVAL: wrong})


def test_patience_grows_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes any time; the first step is compiled; later steps follow the longest one."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    signs = Signs()
    assert signs.patience(600) is None
    signs.note("step 1")
    assert signs.patience(600) == 1800
    now = 1000.0
    signs.note("step 2")
    assert signs.patience(600) == 600
    now = 1100.0
    signs.note("step 3")
    assert signs.patience(600) == 2000 and signs.patience(0) is None
    with signs.at_length("saving", is_saving=True):
        assert signs.patience(600) is None and signs.is_saving
    assert signs.doing == "step 3" and not signs.is_saving
    assert signs.patience(600) == 2000  # the next one may be compiled: three times 600 at least
