"""Signals that ask work to end, in processes that inherit them as shells hand them on."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WORK = """
import signal, sys
from inference.runtime.signals import StopSignals

signals = StopSignals()
with signals.noted(print):
    for number in map(int, sys.argv[1:]):
        signal.raise_signal(number)
        print(signals.number)
print([signal.getsignal(number) == signal.SIG_IGN for number in (1, 2, 15)])
"""
MESSAGE = "stopping after this step; a second signal stops at once"


@contextmanager
def inherited(ignored: bool) -> Iterator[None]:
    """Processes started within have SIGHUP, SIGINT and SIGTERM ignored, or with the default."""
    state = signal.SIG_IGN if ignored else signal.SIG_DFL
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, state) for number in numbers}
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
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_are_put_back(first: int, ignored: bool) -> None:
    done = work(first, ignored=ignored)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [MESSAGE, str(int(first)), str([ignored] * 3)]


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_the_process_whatever_was_inherited(
    first: int, second: int, ignored: bool
) -> None:
    done = work(first, second, ignored=ignored)
    assert done.returncode == -second, done.stdout
    assert done.stderr.endswith("KeyboardInterrupt\n") == (second == signal.SIGINT)


@pytest.mark.parametrize(("ignored", "status"), [(False, -signal.SIGHUP), (True, 0)])
def test_an_ignored_hangup_stays_ignored(ignored: bool, status: int) -> None:
    assert work(signal.SIGHUP, ignored=ignored).returncode == status
    assert work(signal.SIGTERM, signal.SIGHUP, ignored=ignored).returncode == status
