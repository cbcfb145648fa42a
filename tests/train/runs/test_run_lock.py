"""At most one process holds the lock of a run's folder, whoever has died before."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from inference.files import process_space
from train.common.errors import RunDirectoryError
from train.runs import run_lock
from train.runs.run_lock import Holder, RunLock, claim, read, start_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def other() -> Iterator[Holder]:
    """A living process."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout
    child.stdout.readline()
    started, host = start_of(child.pid) or "", os.uname().nodename
    yield Holder(child.pid, started, host, process_space(), "aa", "11")
    child.stdin.close()
    child.stdout.close()
    child.wait()


@pytest.fixture
def dead(other: Holder) -> Holder:
    """A process that has ended, whose number another one has now."""
    return replace(other, started="before", token="22")


def write(path: Path, holder: Holder) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))


def test_it_names_its_holder_and_goes(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.take("aa")
    holder = read(lock.path)
    assert holder is not None and lock.is_held
    assert (holder.pid, holder.run, holder.host) == (os.getpid(), "aa", os.uname().nodename)
    assert holder.started == start_of(os.getpid())
    lock.release()
    assert not lock.path.exists() and not lock.is_held


def test_a_living_process_keeps_it(other: Holder, tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    write(lock.path, other)
    for ask in (lock.refuse_if_held, lambda: lock.take("bb")):
        with pytest.raises(RunDirectoryError, match=rf"process {other.pid} of this machine"):
            ask()
    lock.release()
    assert read(lock.path) == other


def test_an_earlier_start_of_the_same_job_loses_it_on_another_host(
    other: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts a job again does so after its end; nobody else knows."""
    lock = RunLock(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for job in ("", "torchrun mine#0.1", "torchrun other#0.0"):
        write(lock.path, replace(other, host="elsewhere", job=job))
        with pytest.raises(RunDirectoryError, match="on elsewhere"):
            lock.take("bb")
    write(lock.path, replace(other, host="elsewhere", job="torchrun mine#0.0"))
    lock.take("bb")
    holder = read(lock.path)
    assert holder is not None and holder.job == "torchrun mine#0.1" and lock.is_held


def test_a_dead_process_loses_it(dead: Holder, tmp_path: Path) -> None:
    """Also if its number is in use again, and if its parent has not asked for its status."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    zombie = replace(dead, pid=child)
    lock = RunLock(tmp_path)
    for holder in (dead, zombie):
        write(lock.path, holder)
        lock.refuse_if_held()
        lock.take("bb")
        assert lock.is_held
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_another_host_keeps_it_until_its_file_is_removed(dead: Holder, tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    write(lock.path, replace(dead, host="elsewhere"))
    with pytest.raises(RunDirectoryError) as error:
        lock.take("bb")
    assert str(error.value).endswith(f"remove {lock.path}")
    assert "on elsewhere;" in str(error.value)


@pytest.mark.parametrize(
    "number", [1, os.getpid(), 2**22 + 1], ids=["first", "this process", "too large"]
)
def test_another_container_of_the_same_host_name_keeps_it(
    number: int, dead: Holder, tmp_path: Path
) -> None:
    """Its process numbers mean nothing here, even if there are processes of these numbers."""
    lock = RunLock(tmp_path)
    started = start_of(number) or "before"
    own = replace(dead, pid=number, started=started, space="pid:[4026532999] another boot")
    write(lock.path, own)
    for ask in (lock.refuse_if_held, lambda: lock.take("bb")):
        with pytest.raises(RunDirectoryError, match="another container or host called") as error:
            ask()
        assert str(error.value).endswith(f"remove {lock.path}")
    assert read(lock.path) == own


TAKE = """
import sys
from pathlib import Path
from train.runs.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
try:
    lock.take("bb")
    print("taken", flush=True)
    sys.stdin.read()
except ValueError as error:
    print(error)
"""


def test_two_namespaces_of_process_numbers(tmp_path: Path) -> None:
    """The first process in each is number 1 or 2; both live, and the second one is refused."""
    isolated = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"]).returncode:
        pytest.skip("no namespaces may be made here")
    command = [*isolated, sys.executable, "-c", TAKE, str(tmp_path)]
    pipe = subprocess.PIPE
    first = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
    assert first.stdout and first.stdout.readline() == "taken\n"
    answer = subprocess.run(command, input="", capture_output=True, text=True, cwd=ROOT).stdout
    first.communicate()
    assert "in use by process" in answer and "another container" in answer


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b"{}", b'{"pid": 1, "token": "../x"}'])
def test_a_damaged_one_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 0.0)
    lock = RunLock(tmp_path)
    lock.path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"run\.lock cannot be read.* remove this file"):
        lock.take("bb")


def test_a_process_that_saw_the_dead_one_takes_nothing_from_its_successor(
    other: Holder, dead: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its claim another one takes the lock over."""
    path = tmp_path / "run.lock"
    write(path, dead)
    write_new = run_lock.write_new
    late: list[Path] = []

    def slow(target: Path, holder: Holder) -> None:
        if target != path and not late:
            late.append(target)
            claim(path, other)
        write_new(target, holder)

    monkeypatch.setattr(run_lock, "write_new", slow)
    with pytest.raises(RunDirectoryError, match=rf"process {other.pid} "):
        RunLock(tmp_path).take("bb")
    assert late and read(path) == other
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_dies_while_it_takes_over_holds_nothing(
    dead: Holder, tmp_path: Path
) -> None:
    lock = RunLock(tmp_path)
    write(lock.path, dead)
    write(tmp_path / f"run.lock.{dead.token}", replace(dead, token="33"))
    lock.take("bb")
    assert lock.is_held
    assert list(tmp_path.iterdir()) == [lock.path]


def test_of_many_that_take_over_a_dead_one_at_once_one_wins(dead: Holder, tmp_path: Path) -> None:
    for number in range(8):
        lock = RunLock(tmp_path / str(number))
        write(lock.path, dead)
        start, result, end = os.pipe(), os.pipe(), os.pipe()
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                os.close(start[1])
                os.close(end[1])
                os.read(start[0], 1)  # all go when the pipe is closed
                try:
                    lock.take("bb")
                    won = b"1"
                except RunDirectoryError:
                    won = b"0"
                os.write(result[1], won)
                os.read(end[0], 1)  # the winner lives until all have tried
                os._exit(0)
            children.append(child)
        os.close(start[1])
        answers = b"".join(os.read(result[0], 1) for _ in children)
        os.close(end[1])
        for child in children:
            os.waitpid(child, 0)
        for descriptor in (start[0], *result, end[0]):
            os.close(descriptor)
        assert sorted(answers) == [*b"0001"]
        assert list(lock.path.parent.iterdir()) == [lock.path]
