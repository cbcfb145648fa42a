"""Signals that ask work to end, in processes that inherit them as shells hand them on."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference.runtime.signals import STOP_SIGNALS, Interrupted, Stopped, StopSignals

ROOT = Path(__file__).parents[3]

WORK = """
import signal, sys
from inference.runtime.signals import StopSignals

signals = StopSignals()
with signals.noted(print):
    for number in map(int, sys.argv[1:]):
        signal.raise_signal(number)
        print(signals.number)
print([signal.getsignal(number) == signal.SIG_IGN for number in (1, 2, 15, 10, 12)])
"""
MESSAGE = "stopping after this step; a second signal stops at once"
AGAIN = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
"""Signals that a closing terminal or a batch system sends several times."""


@contextmanager
def inherited(ignored: bool) -> Iterator[None]:
    """Processes started within have the stop signals ignored, or with the default."""
    state = signal.SIG_IGN if ignored else signal.SIG_DFL
    before = {number: signal.signal(number, state) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(*numbers: int, ignored: bool) -> subprocess.CompletedProcess[str]:
    """The work, with these signals one after the other."""
    with inherited(ignored):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, *(str(int(number)) for number in numbers)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_the_first_signal_is_noted_and_handlers_are_put_back(first: int, ignored: bool) -> None:
    done = work(first, ignored=ignored)
    assert done.returncode == 0, done.stderr
    inherited = str([ignored] * 5)
    if first == signal.SIGHUP and ignored:  # as `nohup` has it
        assert done.stdout.splitlines() == ["0", inherited]
    else:
        assert done.stdout.splitlines() == [MESSAGE, str(int(first)), inherited]


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_the_process_whatever_was_inherited(
    first: int, second: int, ignored: bool
) -> None:
    done = work(first, second, ignored=ignored)
    assert done.returncode == -second, done.stdout
    assert done.stderr.endswith("KeyboardInterrupt\n") == (second == signal.SIGINT)


def test_a_lost_terminal_may_be_reported_twice() -> None:
    """By the kernel and by the shell; `scancel` and systemd send two different signals."""
    done = work(*AGAIN, *AGAIN, signal.SIGTERM, *AGAIN, ignored=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [MESSAGE, "1"]
    assert done.stdout.count(MESSAGE) == 1


def test_an_attempt_is_left_early_or_left_out() -> None:
    signals, done = StopSignals(), []

    def half() -> None:
        done.append("begun")
        signal.raise_signal(signal.SIGUSR1)
        done.append("ended")

    with signals.noted(lambda _: None):
        signals.attempt(done.append, "before")
        signals.attempt(half)
        signals.attempt(done.append, "after")
    assert done == ["before", "begun"]
    assert signals.number == signal.SIGUSR1


def test_the_work_around_an_attempt_is_not_left() -> None:
    """What puts weights back must not be interrupted: only the innermost block is left."""
    signals, done = StopSignals(), []
    with signals.noted(lambda _: None):
        try:
            signals.attempt(done.append, "work")
        finally:
            signal.raise_signal(signal.SIGUSR2)
            done.append("put back")
    assert done == ["work", "put back"]


def test_messages_name_the_signal() -> None:
    assert str(Interrupted(1, "x")) == "stopped by SIGHUP; saved x"
    assert str(Stopped(12)) == "stopped by SIGUSR2"
