"""Signs of life that the processes of a job leave in its store, and the end of a job that lost one.

Each process writes a beat every few seconds, by a thread, so that long work of its main thread does
not matter, and reads those of the others. Nothing depends on the clocks of hosts: a process counts
in how many of its own rounds another one's beat has not changed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from inference.runtime import InputError, report_failure

INTERVAL = "LIMNER_HEARTBEAT_SECONDS"
HUNG = "LIMNER_HUNG_SECONDS"
RENDEZVOUS = "LIMNER_RENDEZVOUS_SECONDS"

LOST_BEATS = 9
"""Beats that a process misses until it counts as lost."""
HASTY_BEATS = 3
"""The same once a stop signal has come: launchers send it when a process has ended, and kill the
others half a minute later."""
GRACE_BEATS = 2
"""Beats in which a process may find out by itself that another one has ended."""
EXPLAINING_BEATS = 3
"""Beats in which the process that has ended is found."""
FIRST_STEP = 3
"""How much longer than others the first step after other work may take: kernels are compiled."""
LONGEST_GAP = 20
"""How often the longest time between two signs of progress may pass without another one."""
ANOTHER = "another process of this run"
PATIENCE = 2.0
"""Seconds to wait for the store, or for a disk, at the end."""


@dataclass(frozen=True)
class Pace:
    """When a process counts as lost or hung, in seconds."""

    interval: float = 5.0
    """Between beats."""
    hung: float = 600.0
    """Without progress in any process until the job counts as hung; 0 for never."""
    rendezvous: float = 60.0
    """Until all processes have come."""

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Pace:
        """Return the pace that environment variables ask for.

        Raises:
            InputError: one of them is not a positive number.
        """
        found = dict[str, float]()
        for key, name in (("interval", INTERVAL), ("hung", HUNG), ("rendezvous", RENDEZVOUS)):
            if not (text := variables.get(name, "")):
                continue
            try:
                found[key] = float(text)
            except ValueError:
                found[key] = -1.0
            if not (found[key] > 0 or (key == "hung" and found[key] == 0)):
                raise InputError(f"{name}: expected a number of seconds, got {text!r}")
        return cls(**found)

    @property
    def lost(self) -> float:
        """Return the seconds without a beat until a process counts as lost."""
        return self.interval * LOST_BEATS


class Signs:
    """What the main thread of this process is at."""

    def __init__(self) -> None:
        self.doing = "starting"
        self.progress = 0
        """Grows with every sign of progress."""
        self.is_long = True
        """Whether this may take any time: drawing, saving, loading."""
        self.is_saving = False
        self._notes = 0
        """Steps in a row."""
        self._longest = 0.0
        self._since = time.monotonic()

    def note(self, doing: str) -> None:
        """Note progress: a step, or a part of one, begins."""
        now = time.monotonic()
        if self._notes > 1:
            self._longest = max(self._longest, now - self._since)
        self._since, self.doing, self.is_long = now, doing, False
        self.progress += 1
        self._notes += 1

    @contextmanager
    def at_length(self, doing: str, is_saving: bool = False) -> Iterator[None]:
        """State work of the block that may take any time."""
        before = self.doing, self.is_long, self.is_saving
        self.doing, self.is_long, self.is_saving = doing, True, is_saving
        self.progress += 1
        try:
            yield
        finally:
            self.doing, self.is_long, self.is_saving = before
            self.progress += 1
            self._notes, self._since = 0, time.monotonic()

    def patience(self, hung: float) -> float | None:
        """Return the seconds without progress from which on this counts as hung; None for never."""
        if self.is_long or not hung:
            return None
        return max(hung * (FIRST_STEP if self._notes < 2 else 1), LONGEST_GAP * self._longest)


SIGNS = Signs()
"""Those of this process, alone or one of several."""


@dataclass
class Beat:
    """What a process writes to the store."""

    count: int = 0
    progress: int = 0
    doing: str = ""
    place: str = ""
    """Where its main thread is: file, line and function."""
    patience: float | None = None
    host: str = ""
    end: str | None = None
    """Why it has ended; empty if it has done its work, None before."""
    name: str = ""
    """Of this process alone. A store may still have beats of an earlier start of the job."""
    first: str = ""
    """The name of rank 0, once it has answered this process."""
    answers: list[str] = field(default_factory=list)
    """Of rank 0: the names of all processes that it has read."""


@dataclass
class Seen:
    """What this process knows about another one."""

    beat: Beat = field(default_factory=Beat)
    silent: int = 0
    """Own rounds since its beat has changed."""
    changed: float = field(default_factory=time.monotonic)
    """When it has, by the own clock."""
    still: int = 0
    """Own rounds since it has made progress."""

    def update(self, beat: Beat) -> None:
        """Take a beat that was read."""
        has_changed = beat.count != self.beat.count
        self.silent = 0 if has_changed else self.silent + 1
        self.still = 0 if beat.progress != self.beat.progress else self.still + 1
        if has_changed:
            self.changed = time.monotonic()
        self.beat = beat


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a job meet, and which of them this one is."""

    address: str
    port: int
    rank: int
    size: int
    is_host: bool
    """Whether this process has the store."""
    has_launcher: bool
    """Whether the launcher (torchrun, accelerate) has the store."""

    @property
    def where(self) -> str:
        return f"{self.address}:{self.port}"


class Heartbeat:
    """The beats of this process, and those of the others."""

    def __init__(self, program: str, meeting: Meeting, pace: Pace, remedy: str) -> None:
        self.program, self.meeting, self.pace, self.remedy = program, meeting, pace, remedy
        self.others = {rank: Seen() for rank in range(meeting.size) if rank != meeting.rank}
        self.missing = set(self.others)
        """Processes that have not come yet."""
        self.fault = ""
        """Why the store was not reached last."""
        self.all_are_here = threading.Event()
        self.at_end: list[Callable[[], object]] = []
        """What else is done before a lost process ends this one: locks are released."""
        self._own = Beat(host=socket.gethostname(), name=secrets.token_hex(4))
        if meeting.rank == 0:
            self._own.first = self._own.name
        self._known = set[int]()
        """Processes of which the store has a beat, of whatever start."""
        self._still = 0
        self._last_progress = -1
        self._silent = 0
        """Intervals since the store has answered."""
        self._was_reached = False
        self._is_refused = False
        self._has_signal = False
        self._written_end = threading.Event()
        self._hurry, self._stop = threading.Event(), threading.Event()
        self._decision = threading.Lock()
        self._has_left = False
        self._threads: list[threading.Thread] = []
        self._server: Any = None
        self._store: Any = None
        self._wakeup: tuple[socket.socket, socket.socket, int] | None = None

    @property
    def is_unanswered(self) -> bool:
        """Return whether the store has taken a connection, and never answered."""
        return not self._was_reached and not self.fault

    @property
    def _has_store(self) -> bool:
        """Return whether the store has answered of late."""
        return self._was_reached and not self._is_refused and self._silent < HASTY_BEATS

    # ---- the main thread ----------------------------------------------------------------

    def start(self) -> None:
        """Host the store if it is on this process, and begin to beat.

        Raises:
            InputError: the port is taken, or the address is not one of this host.
        """
        if self.meeting.is_host:
            self._server = host_store(self.meeting, self.pace.rendezvous)
        self._listen_to_signals()
        for work in (self._exchange, self._watch):
            name = f"limner-{work.__name__.strip('_')}"
            self._threads.append(threading.Thread(target=work, name=name, daemon=True))
            self._threads[-1].start()

    def leave(self, reason: str) -> None:
        """Tell the others that this process ends: with a reason, or empty once its work is done.

        The process that has the store stays until the others have read it. The threads have ended
        afterwards: Python would end them at its own end, in the middle of the store's code, which
        aborts the process.
        """
        with self._decision:
            self._has_left = True
        self._own.end = reason
        self._hurry.set()
        if self._has_store:
            self._written_end.wait(PATIENCE)
        while self.meeting.is_host and self._written_end.is_set() and self._is_read():
            time.sleep(0.02)
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._restore_signals()

    def _is_read(self) -> bool:
        """Return whether another process may still read the store."""
        now, limit = time.monotonic(), GRACE_BEATS * self.pace.interval
        others = [one for rank, one in self.others.items() if rank not in self.missing]
        return any(one.beat.end is None and now - one.changed <= limit for one in others)

    def explain(self) -> str:
        """Return which process has ended, and why, after a library has noticed that one has.

        Waits for three beats at most; empty if all are there. A first stop signal does not end the
        wait: launchers send it when a process has ended.
        """
        deadline = time.monotonic() + EXPLAINING_BEATS * self.pace.interval
        signals = 0
        while time.monotonic() < deadline and not self._is_refused and signals < 2:
            if said := self._farewells():
                return said
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                signals += 1
        limit = time.monotonic() - self.pace.interval * EXPLAINING_BEATS / 2
        silent = [rank for rank, one in self.others.items() if one.changed < limit]
        if self._is_refused and not self.meeting.has_launcher:
            silent = [0]
        if self._is_refused and self.meeting.has_launcher:
            return self._lost_store()
        if not silent or len(silent) == len(self.others) > 1:
            return self._farewells()
        why = "killed from outside, or by the system because memory ran out"
        return f"{self._name(silent[0])} without a word: {why}"

    def _farewells(self) -> str:
        """Return why another process has ended, if one has said so."""
        ended = [(one.beat.end, rank) for rank, one in self.others.items() if one.beat.end]
        ended.sort(key=lambda one: one[0].startswith(ANOTHER))  # one has ended first
        return next((f"{self._name(rank)}: {reason}" for reason, rank in ended), "")

    def _name(self, rank: int) -> str:
        """Return how messages call another process."""
        beat = self.others[rank].beat
        host = f" of host {beat.host}" if beat.host else ""
        return f"rank {rank}{host}{f' (at {beat.doing})' if beat.doing else ''}"

    def _listen_to_signals(self) -> None:
        """Let the watching thread see stop signals, also while the main thread waits in C."""
        if threading.current_thread() is not threading.main_thread() or os.name != "posix":
            return
        read, write = socket.socketpair()
        for end in (read, write):
            end.setblocking(False)
        before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        self._wakeup = read, write, before

    def _restore_signals(self) -> None:
        if self._wakeup is not None:
            read, write, before = self._wakeup
            signal.set_wakeup_fd(before)
            self._wakeup = None
            read.close()
            write.close()

    # ---- the thread that talks to the store ---------------------------------------------

    def _exchange(self) -> None:
        """Write beats and read those of the others, until the end."""
        while not self._stop.is_set():
            try:
                if self._store is None:
                    self._store = self._connect()
                self._round()
            except (RuntimeError, OSError) as error:
                self.fault = str(error).strip().partition("\n")[0]
                self._is_refused = self._was_reached and self._refuses()
                self._store = None
            in_a_hurry = self._hurry.is_set() or not self.all_are_here.is_set()
            rest = min(0.05, self.pace.interval) if in_a_hurry else self.pace.interval
            (self._stop if in_a_hurry else self._hurry).wait(rest)

    def _connect(self) -> Any:
        """Return a connection of its own, which a wait of the main thread does not hold."""
        from torch._C._distributed_c10d import TCPStore

        where, limit = (self.meeting.address, self.meeting.port), self.pace.rendezvous
        with socket.create_connection(where, timeout=limit / 4):  # its errors say more
            pass
        return TCPStore(
            *where, None, False, timeout=timedelta(seconds=limit), wait_for_workers=False
        )

    def _refuses(self) -> bool:
        """Return whether nobody listens at the store's address any more."""
        try:
            with socket.create_connection(
                (self.meeting.address, self.meeting.port), timeout=self.pace.interval
            ):
                return False
        except ConnectionRefusedError:
            return True
        except OSError:
            return False

    def _round(self) -> None:
        """Write the own beat, read the others'."""
        self._own.count += 1
        self._own.progress, self._own.doing = SIGNS.progress, SIGNS.doing
        self._own.patience, self._own.place = SIGNS.patience(self.pace.hung), main_place()
        written = self._own.end
        self._store.set(key_of(self.meeting.rank), json.dumps(asdict(self._own)))
        if written is not None:
            self._written_end.set()
        self._read()
        has_moved = self._own.progress != self._last_progress
        self._still = 0 if has_moved else self._still + 1
        self._last_progress = self._own.progress
        self._silent, self._was_reached, self.fault = 0, True, ""
        if not self.missing:
            self.all_are_here.set()

    def _read(self) -> None:
        """Read the beats of the others, and tell those of an earlier start of the job apart.

        Rank 0 answers with the names that it has read; whoever finds its own there knows that rank
        0 lives, and says so by its name.
        """
        unknown = self.others.keys() - self._known
        self._known |= {rank for rank in unknown if self._store.check([key_of(rank)])}
        here = sorted(self._known)
        if not here:
            return
        texts = self._store.multi_get([key_of(rank) for rank in here])
        beats = {rank: Beat(**json.loads(text)) for rank, text in zip(here, texts, strict=True)}
        own, rank = self._own, self.meeting.rank
        if rank == 0:
            names = {number: beat.name for number, beat in beats.items()}
            own.answers = [names.get(number, "") for number in range(self.meeting.size)]
        elif 0 in beats and beats[0].answers[rank : rank + 1] == [own.name]:
            own.first = beats[0].name
        for number, beat in beats.items():
            if own.first and beat.first == own.first:
                self.missing.discard(number)
                self.others[number].update(beat)

    @property
    def token(self) -> str:
        """Return the name of this start of the job, once all are here."""
        return self._own.first

    # ---- the thread that decides ---------------------------------------------------------

    def _watch(self) -> None:
        """End the process once another one is lost."""
        overdue = 0
        while not self._stop.wait(self.pace.interval):
            if self._has_left or not self.all_are_here.is_set():
                continue
            self._silent += 1
            self._has_signal = self._has_signal or self._signal_came()
            message = self._loss()
            if not message and (said := self._farewells()):
                overdue += 1
                message = f"{ANOTHER} has ended: {said}" if overdue > GRACE_BEATS else ""
            if not message:
                continue
            waited = 0
            while SIGNS.is_saving and waited < LOST_BEATS and not self._stop.is_set():
                waited += 1
                self._stop.wait(self.pace.interval)
            self._end(f"{message}; {self.remedy}")

    def _signal_came(self) -> bool:
        """Return whether SIGTERM has come since the last call."""
        wakeup = self._wakeup
        if wakeup is None:
            return False
        with suppress(OSError):  # nothing has come, or the main thread has closed it
            return signal.SIGTERM in wakeup[0].recv(64)
        return False

    def _loss(self) -> str:
        """Return which process is lost, or that all are hung; empty if neither."""
        limit = HASTY_BEATS if self._has_signal else LOST_BEATS
        if self._is_refused or self._silent > limit:
            return self._lost_store()
        for rank, one in self.others.items():
            if one.beat.end is None and one.silent >= limit:
                seconds = limit * self.pace.interval
                doing = f" (it was at {one.beat.doing})"
                name = f"rank {rank} of host {one.beat.host}"
                return f"{name} has given no sign of life for {seconds:g} s{doing}"
        return self._hang()

    def _lost_store(self) -> str:
        """Return the message for a store that is gone."""
        gone = "has closed" if self._is_refused else "does not answer"
        if self.meeting.has_launcher:
            return (
                f"the launcher at {self.meeting.where} {gone}: torchrun or accelerate, or the "
                "whole host, has ended"
            )
        beat = self.others[0].beat if 0 in self.others else self._own
        what = f"the store at {self.meeting.where} {gone}"
        return f"rank 0 of host {beat.host} is lost (it was at {beat.doing}): {what}"

    def _hang(self) -> str:
        """Return where the processes are if none of them gets on; empty otherwise."""
        all_of_them = {rank: (one.beat, one.still) for rank, one in self.others.items()}
        all_of_them[self.meeting.rank] = self._own, self._still
        patience = 0.0
        for beat, still in all_of_them.values():
            if beat.patience is None or still * self.pace.interval < beat.patience:
                return ""
            patience = max(patience, beat.patience)
        places = "; ".join(
            f"rank {rank} of host {beat.host}, at {beat.doing}, in {beat.place}"
            for rank, (beat, _) in sorted(all_of_them.items())
        )
        return (
            f"no process has made progress for {patience:g} s: {places}. If a step takes that "
            f"long, set {HUNG}"
        )

    def _end(self, message: str) -> None:
        """End this process with a message, unless its main thread is about to end by itself."""
        with self._decision:
            if self._has_left:
                return
            self._own.end = message
            self._hurry.set()
            if self._has_store:
                self._written_end.wait(PATIENCE)
            for work in self.at_end:
                limited(work)
            is_known = self._has_store and limited(lambda: self._is_first_to_say(message)) is False
            if not is_known:
                report_failure(self.program, message)
            deadline = time.monotonic() + GRACE_BEATS * self.pace.interval
            while self.meeting.is_host and self._is_read() and time.monotonic() < deadline:
                time.sleep(0.02)
            os._exit(1)

    def _is_first_to_say(self, message: str) -> bool:
        """Return whether no other process has ended for the same reason."""
        kind = message.partition(" (")[0].partition(", at ")[0]
        return self._store.add(f"limner/said/{self.token}/{kind}", 1) == 1


def limited(work: Callable[[], Any]) -> Any:
    """Return the result of work if it ends soon and well; None otherwise."""
    results: list[Any] = []

    def run() -> None:
        with suppress(Exception):  # this process ends for another reason, which it reports
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return results[0] if results else None


def key_of(rank: int) -> str:
    """Return where a process leaves its beats in the store."""
    return f"limner/beat/{rank}"


def main_place() -> str:
    """Return where the main thread is: the innermost place in files of our own, or of anybody."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost, own = frame, None
    while frame is not None and own is None:
        path = frame.f_code.co_filename
        own = None if "site-packages" in path or path.startswith(sys.base_prefix) else frame
        frame = frame.f_back
    return describe_frame(own or innermost)


def describe_frame(frame: FrameType | None) -> str:
    """Return the file, line and function of a frame."""
    if frame is None:
        return "an unknown place"
    path = "/".join(Path(frame.f_code.co_filename).parts[-3:])
    return f"{path}:{frame.f_lineno} ({frame.f_code.co_name})"


def host_store(meeting: Meeting, limit: float) -> Any:
    """Return the store that this process has for all; that of the process group is the same one.

    Raises:
        InputError: the port is taken.
    """
    from torch._C._distributed_c10d import TCPStore

    wait, (address, port) = timedelta(seconds=limit), (meeting.address, meeting.port)
    try:
        return TCPStore(
            address, port, None, True, timeout=wait, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"MASTER_ADDR:MASTER_PORT: rank 0 cannot listen at {meeting.where}, where the "
            f"{meeting.size} processes are to meet: {reason}. The address must be one of rank 0's "
            "host, and the port free"
        ) from error
