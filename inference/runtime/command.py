"""What every command does around its work: streams, signals, and errors as one message."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from inference.runtime.errors import InputError, LostError
from inference.runtime.failures import (
    NOT_OF_THE_INPUT,
    describe_compile_fault,
    describe_inexact,
    describe_memory_fault,
    describe_os_error,
    describe_worker_fault,
    fragments_note,
    is_memory_fault,
    number_of,
)
from inference.runtime.signals import Stopped, heeded_signals
from inference.runtime.streams import lasting_streams, lost_output
from inference.runtime.text import output

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 128
"""Exit statuses; STOPPED is increased by the signal's number."""

PATIENCE = 5.0
"""Seconds to wait for the store of a job."""

MEMORY_REMEDY = "close other programs, or ask for less at once"


def run_command(
    program: str,
    work: Callable[[list[str]], int],
    arguments: Sequence[str] | None,
    prints_result: bool = False,
) -> int:
    """Do a command's work and return its exit status; errors of input and system are one message.

    Args:
        program: begins every message.
        work: takes the arguments and returns the exit status.
        arguments: None takes those of the process, which this command then is: a stop signal ends
            it with one line and the status 128 + number.
        prints_result: whether the result is what the command prints, so that a full disk below
            standard output is an error.
    """
    is_process = arguments is None
    given = list(sys.argv[1:] if arguments is None else arguments)
    with lasting_streams(is_process), stop_signals_heeded(program, is_process):
        try:
            status = status_of(program, lambda: work(given))
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)
            report_once(program, f"{Stopped(number)}; what was saved before is complete")
            return STOPPED + number
        if prints_result and status == DONE and (lost := lost_output()) is not None:
            lost.filename = "standard output"
            report(program, describe_os_error(lost))
            return FAILED
        return status


def status_of(program: str, work: Callable[[], int]) -> int:
    """Return the exit status of work, after printing the message of its error, if it has one."""
    try:
        return work()
    except InputError as error:
        report_failure(program, error)
        return WRONG_INPUT
    except Exception as error:
        message = describe_failure(error)
        if message is None:
            raise
        report_failure(program, message)
        return FAILED if is_of_the_system(error) else WRONG_INPUT


def is_of_the_system(error: BaseException) -> bool:
    """Return whether no other input would mend an error."""
    is_lost = isinstance(error, LostError) or describe_worker_fault(error) is not None
    return is_lost or is_memory_fault(error) or number_of(error) in NOT_OF_THE_INPUT


def describe_failure(error: BaseException) -> str | None:
    """Return the message of an error of files, disks, memory or processes; None for another one."""
    if is_memory_fault(error):
        remedy = getattr(error, "__notes__", [MEMORY_REMEDY])[-1]
        return f"{describe_memory_fault(error)}; {remedy}{fragments_note(error)}"
    for describe in (describe_inexact, describe_compile_fault):
        if (message := describe(error)) is not None:
            return message
    if (lost := describe_worker_fault(error)) is not None:
        return lost
    if isinstance(error, LostError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    if number := number_of(error):  # of libraries that write files by themselves
        return describe_os_error(OSError(number, os.strerror(number)))
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "a path contains the character U+0000, which no path can contain; remove it"
    return None


def report(program: str, message: object) -> None:
    """Print every line of a message to standard error, prefixed with the program's name."""
    for line in str(message).rstrip("\n").split("\n"):
        output(f"{program}: {line}", is_error=True)


def report_failure(program: str, message: object) -> None:
    """Print the message of an error, unless another process of the job has printed the same one."""
    if is_new_in_job(f"{program}: {message}"):
        report(program, message)


def is_new_in_job(message: str) -> bool:
    """Return whether no other process of a job has reported a message so far.

    torchrun, and accelerate by it, keeps a store for the processes of a job that outlives them all.
    Where there is none, or it does not answer, every message is new: rather twice than never.
    """
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_kept or os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from torch.distributed.elastic.utils.distributed import create_c10d_store

    digest = hashlib.sha256(message.encode("utf-8", "surrogatepass")).hexdigest()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = create_c10d_store(False, address, port, timeout=PATIENCE, wait_for_workers=False)
        return store.add(f"limner/{attempt}/{digest}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def is_first_process() -> bool:
    """Return whether this is the process (of those accelerate or torchrun started) that prints."""
    return os.environ.get("RANK", "0") == "0"


def report_once(program: str, message: object) -> None:
    """Print a message that every process of a job has, in the first one of them."""
    if is_first_process():
        report(program, message)


@contextmanager
def stop_signals_heeded(program: str, is_process: bool) -> Iterator[None]:
    """Let stop signals end the work while the block lasts, unless it handles them itself.

    During an import they end the process, with one line: an exception there may be swallowed, or
    become another one. Nothing happens within a process that is not this command's own.

    Raises:
        Stopped: one came.
    """
    if not is_process:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        if is_importing(frame):
            leave(program, number)
        raise Stopped(number)

    before = {number: signal.signal(number, end) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to an import."""
    while frame is not None:
        if frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib"):
            return True
        frame = frame.f_back
    return False


def leave(program: str, number: int) -> NoReturn:
    """End the process at once, with one line and the status of a stop signal."""
    report_once(program, Stopped(number))
    flush: Any
    for flush in (sys.stdout.flush, sys.stderr.flush):
        flush()
    os._exit(STOPPED + number)
