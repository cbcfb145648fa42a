"""The lock of a run's folder: at most one process writes to a run.

The file `run.lock` names its holder: process, its start time, host, container, run. It is made with
O_EXCL, which disks without links or flock support too. A dead process of this host holds no lock;
whether one of another host or container is alive is unknown, so its lock holds until somebody
removes the file, or until a launcher or batch system starts the same job again: it does so only
once the earlier processes have ended.

A dead lock is taken over under a lock of its own, named by the dead one's token: of all processes
that see the same dead lock, one makes that file, and only the holder of that file replaces the
lock. Were it deleted and made again instead, a slower process would delete the new one.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from inference.files import process_space
from inference.parallel import job_here
from train.common import RunDirectoryError

LOCK = "run.lock"

PATIENCE = 2.0
"""Seconds to wait for a lock that is being written, and so cannot be read yet."""

BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """The process that a lock belongs to."""

    pid: int
    started: str
    """When the process began, in the system's own terms; compared, never read."""
    host: str
    space: str
    """Where its number counts (`process_space`)."""
    run: str
    """The id of the run that it writes."""
    token: str
    """Another one for every lock."""
    job: str = ""
    """The job that it belongs to and the start of it, if a launcher or a batch system says."""

    @property
    def is_here(self) -> bool:
        """Return whether it is a process of this host, and of the same container."""
        return (self.host, self.space) == (socket.gethostname(), process_space())

    @property
    def is_this_process(self) -> bool:
        return self.is_here and self.pid == os.getpid() and self.started == start_of(self.pid)

    @property
    def may_live(self) -> bool:
        """Return whether the process exists, as far as this host can know."""
        if not self.is_here:
            job = job_here()
            return job is None or not job.follows(self.job)
        now = start_of(self.pid)
        return now is not None and now in (self.started, UNKNOWN)


UNKNOWN = "unknown"
"""The start of a process that this one may not look at."""


def start_of(pid: int) -> str | None:
    """Return when a process of this host began; None if it does not exist, or is a zombie."""
    if not BOOT.is_file():
        return _start_by_psutil(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # or it is hidden from this user
        with suppress(ProcessLookupError):
            try:
                os.kill(pid, 0)
            except PermissionError:
                return UNKNOWN
        return None
    state, *fields = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return f"{BOOT.read_text(encoding='utf-8').strip()} {fields[18]}"


def _start_by_psutil(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return str(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return UNKNOWN


class RunLock:
    """The lock of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.token = ""
        """Of the lock that this object holds; empty if it holds none."""

    def refuse_if_held(self) -> None:
        """Raise RunDirectoryError if another process holds the lock, or its file is damaged."""
        holder = read(self.path)
        if holder is not None and not holder.is_this_process and holder.may_live:
            raise held(self.path, holder)

    def take(self, run: str) -> None:
        """Take the lock for a run; the folder is created.

        A lock that this process holds already, of an earlier run in it, is replaced.

        Raises:
            RunDirectoryError: another process holds it, or it cannot be written.
        """
        me, host = os.getpid(), socket.gethostname()
        started, token = start_of(me) or UNKNOWN, secrets.token_hex(8)
        job = str(job_here() or "")
        mine = Holder(me, started, host, process_space(), run, token, job)
        try:
            claim(self.path, mine)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path} cannot be written ({error.strerror}), so that the folder cannot be "
                "locked: give another output_dir=…, or make room or the right to write here"
            ) from error
        self.token = mine.token

    @property
    def is_held(self) -> bool:
        """Return whether the file is still the one that `take` wrote."""
        try:
            return bool(self.token) and json.loads(self.path.read_bytes())["token"] == self.token
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def release(self) -> None:
        """Remove the file, if it is still the one that `take` wrote."""
        if self.is_held:
            with suppress(OSError):  # it stays, and is free once this process has ended
                self.path.unlink()
        self.token = ""


def claim(path: Path, mine: Holder) -> None:
    """Make a lock's file, or replace that of a dead process.

    Raises:
        RunDirectoryError: a process that may live holds it.
        OSError: it cannot be written.
    """
    while True:
        try:
            return write_new(path, mine)
        except FileNotFoundError:  # the folder was renamed meanwhile
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        except FileExistsError:
            other = read(path)
        if other is None:  # released meanwhile
            continue
        if not other.is_this_process and other.may_live:
            raise held(path, other)
        successor = path.with_name(f"{path.name}.{other.token}")
        claim(successor, mine)
        if read(path) == other:
            successor.replace(path)
            return None
        successor.unlink(missing_ok=True)


def write_new(path: Path, holder: Holder) -> None:
    """Write a lock's file, which does not exist yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, json.dumps(asdict(holder)).encode())
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def read(path: Path) -> Holder | None:
    """Return whom a lock's file names; None if there is no file.

    Raises:
        RunDirectoryError: it is damaged, or remains empty.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            content = json.loads(path.read_bytes())
            names = [field.name for field in fields(Holder) if field.name not in ("pid", "job")]
            values = {name: str(content[name]) for name in names}
            values["job"] = str(content.get("job", ""))  # earlier versions do not write it
            if not values["token"].isalnum():
                raise ValueError("its token is not one")
            return Holder(pid=int(content["pid"]), **values)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if time.monotonic() > end:
                raise RunDirectoryError(
                    f"{path} cannot be read, so that it is unknown who writes to {path.parent}: "
                    f"{error}. If no run does, remove this file"
                ) from error
        time.sleep(0.05)


def held(path: Path, holder: Holder) -> RunDirectoryError:
    """Return the error that somebody else writes to a run."""
    if holder.is_here:
        return RunDirectoryError(
            f"{path.parent} is in use: process {holder.pid} of this machine writes to it "
            f"({path.name}). Wait until it has ended, stop it, or give another name=…"
        )
    where = holder.host
    if where == socket.gethostname():
        where = f"another container or host called {where}"
    return RunDirectoryError(
        f"{path.parent} is in use by process {holder.pid} on {where}; if no run is active "
        f"there any more, remove {path}"
    )
