"""Hidden names of files that are being written, and the removal of those that nobody writes.

A file is first called `.NAME.HOST-PID-NUMBER.limner`, and gets its name when it is complete. When a
process first writes into a folder, it removes what processes left there that were killed. What a
living process of this host writes is kept, as is what was written on another host, since nothing is
known about its processes.
"""

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

END = ".limner"
OUTSIDE = "pid:[4026531836]"
"""Linux's namespace of process numbers outside containers (`PROC_PID_INIT_INO`)."""
REPLACED = ".replaced"
"""Ends the name of a folder that makes room for another one."""
LONGEST_NAME = 48
"""Maximum characters of the final name in a hidden one; file systems allow 255 bytes in all."""

HIDDEN = re.compile(
    rf"\.(?P<name>.+)\.(?P<host>[0-9a-f]{{8}})-(?P<pid>\d+)-\d+"
    rf"(?:{re.escape(END)}|(?P<replaced>{re.escape(REPLACED)}))",
    re.DOTALL,
)

_numbers = count()
_open: set[str] = set()
"""Hidden names that this process is writing."""
_swept: set[str] = set()
"""Folders from which this process has removed left-overs."""


@cache
def process_space() -> str:
    """Return what distinguishes process numbers of one host name, or "" where nothing does.

    Containers may share a host name while each counts its processes by itself: on Linux, the
    namespace of process numbers distinguishes them. Those of containers have the same numbers on
    many machines, and none survives a restart of its machine, so the boot id goes with them. The
    namespace outside containers has one number everywhere; a restart only ends its processes.
    """
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
        if namespace == OUTSIDE:
            return namespace
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # another system
        return ""
    return f"{namespace} {boot}"


@cache
def this_host() -> str:
    """Return 8 hexadecimal digits that stand for this host, or for this container on it."""
    name = platform.node() + process_space()
    return hashlib.blake2b(name.encode(), digest_size=4).hexdigest()


def hidden_name(target: Path, end: str = END) -> Path:
    """Return a new hidden name beside a file's or folder's final path."""
    name = target.name if end == REPLACED else target.name[:LONGEST_NAME]
    owner = f"{this_host()}-{os.getpid()}-{next(_numbers)}"
    return target.with_name(f".{name}.{owner}{end}")


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Provide a hidden path to write at; what is still there at the end is removed.

    Args:
        target: the final path; its folder is created, and left-overs in it are removed.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    path = hidden_name(target)
    _open.add(path.name)
    try:
        yield path
    finally:
        remove(path)
        _open.discard(path.name)


@contextmanager
def set_aside(target: Path) -> Iterator[None]:
    """Move an existing folder out of the way; remove it in the end, or after an error restore it.

    A process that is killed meanwhile leaves it under a hidden name, from which `sweep` restores it
    unless there is a new one.
    """
    if not target.exists():
        yield
        return
    path = hidden_name(target, REPLACED)
    _open.add(path.name)
    try:
        target.rename(path)
        yield
    finally:
        if path.exists():
            recover(path)
        _open.discard(path.name)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the left-overs of dead processes from a folder, once in the life of this process."""
    place = str(folder.absolute())
    if place in _swept:
        return
    _swept.add(place)
    for path in left_overs(folder):
        with suppress(OSError):  # another process removes it too, or nothing can be written here
            recover(path)


def left_overs(folder: Path) -> list[Path]:
    """Return the hidden files and folders in a folder that a dead process has left."""
    try:
        found = [(path, HIDDEN.fullmatch(path.name)) for path in folder.iterdir()]
    except OSError:  # one may write here without the right to list
        return []
    return [path for path, match in found if match and is_left_over(path.name, match)]


def is_left_over(name: str, match: re.Match[str]) -> bool:
    """Return whether the process that had a hidden name has ended."""
    if match["host"] != this_host():
        return False
    pid = int(match["pid"])
    return name not in _open if pid == os.getpid() else not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Return whether a process of this host exists, as far as can be known."""
    if os.name == "nt":  # signal 0 would interrupt it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def recover(path: Path) -> None:
    """Remove a left-over; a folder that was about to be replaced gets its name back instead."""
    match = HIDDEN.fullmatch(path.name)
    if match and match["replaced"] and not (target := path.with_name(match["name"])).exists():
        path.rename(target)
        return
    remove(path)
