"""The start of a group of processes: they meet, watch each other, and wait as long as it takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

from inference.parallel.heartbeat import ANOTHER, Heartbeat, Meeting, Pace
from inference.runtime import InputError, Interrupted, LostError

OWN_SETTINGS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
"""NCCL's watchdog would abort the process with pages of text in place of the message; with these it
waits until the heartbeat ends the process. Values that the user has set stay."""

COMPLETE = "what was saved before is complete"

_beating: list[Heartbeat] = []
"""The heartbeat of this process, if it has one."""


@contextmanager
def joined(program: str, remedy: str = COMPLETE) -> Iterator[None]:
    """Meet the other processes of the job, if there are any, and watch them during the block.

    If one is lost, this process ends with status 1 and one message, even if its main thread hangs.

    Args:
        program: begins the message.
        remedy: ends it: what is left, and what to do.

    Raises:
        InputError: the address where the processes are to meet cannot be reached.
        LostError: other processes do not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    beats = meet(program, remedy)
    _beating.append(beats)
    reason = ""
    try:
        yield
    except Interrupted:  # all have stopped together
        raise
    except BaseException as error:
        reason = reason_of(error)
        if names_lost_process(error):
            found = beats.explain()
            raise LostError(f"{ANOTHER} has ended: {found or reason}; {remedy}") from error
        raise
    finally:
        _beating.remove(beats)
        beats.leave(reason)


LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|gloo|NCCL|Socket Timeout|process group", re.I
)
"""Error messages of libraries about a lost process; gloo raises a plain RuntimeError."""


def names_lost_process(error: BaseException) -> bool:
    """Return whether a library reports that another process of the job is gone."""
    is_of_library = isinstance(error, RuntimeError) and not isinstance(error, LostError)
    return is_of_library and not is_own(error) and bool(LOST.search(str(error)))


def is_own(error: BaseException) -> bool:
    """Return whether an error is of a class of ours, whose message says it all."""
    return type(error).__module__.partition(".")[0] in ("inference", "train")


def reason_of(error: BaseException) -> str:
    """Return in one line why a process ends."""
    first_line = str(error).strip().partition("\n")[0]
    return first_line if is_own(error) and first_line else f"{type(error).__name__}: {first_line}"


def meet(program: str, remedy: str) -> Heartbeat:
    """Return the heartbeat of this process once all processes have come.

    Raises:
        InputError: the address where they are to meet cannot be reached.
        LostError: some do not come.
    """
    meeting, pace = find_meeting(os.environ), Pace.of(os.environ)
    for name, value in OWN_SETTINGS.items():
        os.environ.setdefault(name, value)
    beats = Heartbeat(program, meeting, pace, remedy)
    beats.start()
    if beats.all_are_here.wait(pace.rendezvous):
        return beats
    error = why_not_met(beats)
    beats.leave(str(error))
    raise error


def find_meeting(variables: Mapping[str, str]) -> Meeting:
    """Return where processes meet, as the launcher says in environment variables.

    Raises:
        InputError: the launcher does not say, or not in full.
    """
    launcher = "start the processes by torchrun or `accelerate launch`, which set it"
    address = variables.get("MASTER_ADDR", "")
    if not address:
        size = variables["WORLD_SIZE"]
        raise InputError(f"WORLD_SIZE is {size}, and MASTER_ADDR is not set: {launcher}")
    numbers = dict[str, int]()
    for name in ("MASTER_PORT", "RANK", "WORLD_SIZE"):
        text = variables.get(name, "")
        if not text.isdigit():
            raise InputError(f"{name}: expected a whole number, got {text!r}: {launcher}")
        numbers[name] = int(text)
    if not 0 < numbers["MASTER_PORT"] < 2**16:
        raise InputError(f"MASTER_PORT: expected 1 to 65535, got {numbers['MASTER_PORT']}")
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank >= size:
        raise InputError(f"RANK: expected less than WORLD_SIZE {size}, got {rank}")
    has_launcher = variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = rank == 0 and not has_launcher
    return Meeting(address, numbers["MASTER_PORT"], rank, size, is_host, has_launcher)


def why_not_met(beats: Heartbeat) -> InputError | LostError:
    """Return the error of processes that have not met in time."""
    meeting, limit = beats.meeting, f"{beats.pace.rendezvous:g} s"
    come = meeting.size - len(beats.missing)
    if come == 1 and beats.fault and not meeting.is_host:
        return InputError(
            f"MASTER_ADDR:MASTER_PORT: rank {meeting.rank} of {meeting.size} has not reached "
            f"{meeting.where} within {limit} ({beats.fault}). Check that rank 0 runs on that host, "
            "that its name means the same address on every host, and that no firewall closes the "
            "port"
        )
    if beats.is_unanswered:
        return LostError(
            f"{meeting.where} (MASTER_ADDR:MASTER_PORT), where {meeting.size} processes meet, has "
            f"not answered within {limit}: "
            + ("the launcher" if meeting.has_launcher else "rank 0")
            + " there is stopped, or another program has the port"
        )
    missing = ", ".join(map(str, sorted(beats.missing)))
    return LostError(
        f"{come} of {meeting.size} processes have come to {meeting.where} "
        f"(MASTER_ADDR:MASTER_PORT) within {limit}; missing: rank {missing}. Check what they say, "
        "and that every host was started with the same number of processes"
    )


SCHEME = "limner"
"""Of the address by which torch asks for the store of a process group."""


def group_address() -> str | None:
    """Return the `init_method` of torch's process group; None for torch's own.

    torchrun keeps one store for all starts of a job, in which torch would find where the processes
    of the start before have listened. This one has a part for each start.
    """
    if not _beating:
        return None
    register_scheme()
    return f"{SCHEME}://"


@cache
def register_scheme() -> None:
    """Let torch find the store of this start by its address."""
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.distributed.rendezvous import register_rendezvous_handler

    def find(_: str, timeout: timedelta, **__: object) -> Iterator[tuple[PrefixStore, int, int]]:
        beats = _beating[-1]
        meeting = beats.meeting
        where = meeting.address, meeting.port
        store = TCPStore(*where, None, False, timeout=timeout, wait_for_workers=False)
        yield PrefixStore(f"limner/group/{beats.token}", store), meeting.rank, meeting.size

    register_rendezvous_handler(SCHEME, find)


def release_at_end(work: Callable[[], object]) -> None:
    """Do this too before the loss of another process ends this one."""
    for beats in _beating:
        beats.at_end.append(work)


def explain_loss() -> str:
    """Return which other process has ended, and why, as far as this one knows; or empty.

    Waits for two beats at most.
    """
    return next((beats.explain() for beats in _beating), "")
