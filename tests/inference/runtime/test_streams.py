"""Output whose reader is gone, or whose disk is full: commands go on, or say what is missing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FULL = Path("/dev/full")

WORK = """
import sys
from inference.runtime import run_command

def work(arguments):
    for number in range(200):
        print("line", number)
        print("note", number, file=sys.stderr)
    open(arguments[0], "w").write("done")
    return 0

sys.exit(run_command("work", work, None, prints_result="result" in sys.argv))
"""


def start(*arguments: str, **streams: object) -> subprocess.Popen[str]:
    """Starts the work in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        **streams,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("lost", ["stdout", "stderr"])
def test_a_closed_pipe_ends_nothing(lost: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    other = "stderr" if lost == "stdout" else "stdout"
    process = start(str(tmp_path / "result"), **{lost: write, other: subprocess.PIPE})
    os.close(read)
    os.close(write)
    out, err = process.communicate()
    assert process.returncode == 0
    assert (out or err).count("\n") == 200
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.parametrize("lost", ["stdout", "stderr"])
@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_below_a_log_ends_nothing(lost: str, tmp_path: Path) -> None:
    other = "stderr" if lost == "stdout" else "stdout"
    with FULL.open("w") as full:
        process = start(str(tmp_path / "result"), **{lost: full, other: subprocess.PIPE})
        out, err = process.communicate()
    assert process.returncode == 0
    assert (out or err).count("\n") == 200
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_result_that_is_not_complete_is_an_error(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        process = start(str(tmp_path / "result"), "result", stdout=full, stderr=subprocess.PIPE)
        err = process.communicate()[1]
    assert process.returncode == 1
    assert err.splitlines()[-1] == (
        "work: standard output: No space left on device; make room on this disk, or write to "
        "another one"
    )


def test_a_lost_terminal_ends_nothing(tmp_path: Path) -> None:
    """Its master end is closed: writing fails with EIO."""
    master, terminal = os.openpty()
    process = start(str(tmp_path / "result"), stdout=terminal, stderr=terminal)
    os.close(terminal)
    os.read(master, 4)
    os.close(master)
    assert process.wait() == 0
    assert (tmp_path / "result").read_text() == "done"


def test_closed_streams_do_not_hand_their_descriptors_to_files(tmp_path: Path) -> None:
    """As with `>&- 2>&-`: what is printed must not land in the file that is opened next."""
    command = f'exec "{sys.executable}" -c "$0" "$1" >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, WORK, str(tmp_path / "result")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "result").read_text() == "done"


WAIT = """
import sys, time
from inference.runtime import run_command

def work(arguments):
    print("begun", flush=True)
    WAITING
    return 0

sys.exit(run_command("work", work, None))
"""


NOTHING_IGNORED = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_DFL)
"""


@pytest.mark.parametrize("place", ["time.sleep(60)", "import slow_module"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_ends_a_command_with_one_line(name: str, place: str, tmp_path: Path) -> None:
    """Also in an import that would swallow an exception; whatever this process has inherited."""
    (tmp_path / "slow_module.py").write_text(
        "import time\ntry:\n    print('deep', flush=True); time.sleep(60)\n"
        "except BaseException as error:\n    raise ImportError('no') from error\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", NOTHING_IGNORED + WAIT.replace("WAITING", place)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    if "import" in place:
        assert process.stdout.readline() == "deep\n"
    process.send_signal(signal.Signals[name])
    _, err = process.communicate()
    assert process.returncode == 128 + signal.Signals[name]
    assert err.startswith(f"work: stopped by {name}")
    assert err.count("\n") == 1
