"""Failures of the system as one sentence: files, disks, memory, and processes that it has ended."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.runtime.streams import FULL

REMEDIES = {
    errno.EACCES: "give this user the right to use it, or name another path",
    errno.EPERM: "give this user the right to use it, or name another path",
    errno.EROFS: "nothing can be written there; name another folder",
    errno.ENAMETOOLONG: "a name has at most 255 bytes on most disks, a path 4096; name another",
    errno.ELOOP: "its links go in a circle; mend or remove them",
    errno.ENOENT: "check the path, or create it",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EISDIR: "name a file",
    errno.ENOSPC: "make room on this disk, or write to another one",
    errno.EDQUOT: "make room within the quota, or write to another disk",
    errno.EFBIG: "the disk's format or `ulimit -f` allows no larger files; write to another disk",
    errno.EIO: "the disk or the connection to it fails; check it",
    errno.ESTALE: "the connection to a network disk was lost; check it",
    errno.EMFILE: "raise the limit (`ulimit -n 4096`), or lower data.num_workers",
    errno.ENFILE: "the whole system has too many open files; close other programs",
}
"""Error number -> what to do."""

NOT_OF_THE_INPUT = (*FULL, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
"""Errors that another recipe does not mend: the command has failed."""

LONGEST_PATH = 200
"""Characters of a path in a message; of a longer one the middle is left out."""

MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.I,
)
"""What libraries say in a plain RuntimeError where memory is short."""

WORKER = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: (?P<signal>[\w ]+)|exited)"
)
"""What torch says of a lost process of a data loader."""

OS_ERROR = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
"""Error numbers in the messages of libraries that raise errors of their own."""


def describe_os_error(error: OSError) -> str:
    """Return the file of an error, its key in the recipe if known, the reason and a remedy."""
    number = number_of(error)
    paths = [shorten(path)] if (path := path_of(error)) else []
    reason = os.strerror(number) if number else " ".join(str(error).split()) or "cannot be used"
    where = [*getattr(error, "__notes__", ()), *paths]
    return ": ".join([*where, f"{reason}; {REMEDIES.get(number, 'check the path and the disk')}"])


def path_of(error: OSError) -> str:
    """Return the path that an error names, or ""."""
    named = error.filename
    return os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else ""


def number_of(error: BaseException) -> int:
    """Return the system's number of an error, also of one that a library repeats; 0 for none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = OS_ERROR.search(str(error))
    if found:
        return int(found[1] or found[2])
    return errno.EMFILE if "Too many open files" in str(error) else 0


@contextmanager
def naming(target: Path, unfinished: Path) -> Iterator[None]:
    """Let errors of writing a temporary file or folder in the block name its final path.

    Errors of libraries become errors of the system if they repeat its number; others stay.

    Raises:
        OSError: one of them.
    """
    try:
        yield
    except Exception as error:
        number, path = number_of(error), path_of(error) if isinstance(error, OSError) else ""
        if not number or (path and not path.startswith(str(unfinished))):
            raise
        rest = path.removeprefix(str(unfinished))
        raise OSError(number, os.strerror(number), f"{target}{rest}") from error


def shorten(path: str) -> str:
    """Return a path without the middle of a very long one."""
    if len(path) <= LONGEST_PATH:
        return path
    half = LONGEST_PATH // 2
    return f"{path[:half]}…{path[-half:]}"


def free_descriptors() -> int | None:
    """Return how many more files this process may open; None where the system does not say."""
    try:
        import resource

        limit, used = (
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            len([*Path("/dev/fd").iterdir()]),
        )
    except (ImportError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(0, limit - used)


def is_memory_fault(error: BaseException) -> bool:
    """Return whether the memory of the device or of the system was too small."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_plain = isinstance(error, RuntimeError) and bool(MEMORY.search(str(error)))
    return is_plain or isinstance(error, MemoryError)


def describe_memory_fault(error: BaseException) -> str:
    """Return the sentence for too little memory, with what a library says of the amount."""
    amount = re.search(
        r"[Tt]ried to allocate ([\d.]+ ?\w+)|Unable to allocate (\S+ \w+)", str(error)
    )
    asked = f" for {amount[1] or amount[2]} more" if amount else ""
    device = re.search(r"(CUDA|HIP|MPS|XPU)", str(error))
    whose = "the device" if device or type(error).__name__ == "OutOfMemoryError" else "the system"
    return f"{whose} has not enough memory{asked}"


def fragments_note(error: BaseException) -> str:
    """Return what else helps where a GPU's memory is short, unless it is set already."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    is_set = any("expandable_segments:True" in os.environ.get(name, "") for name in names)
    if is_set or "CUDA" not in str(error):
        return ""
    return f". If it is nearly enough, set {names[0]}=expandable_segments:True: less is wasted"


INEXACT = re.compile(r"(\S+) does not have a deterministic implementation")
"""What torch says of operations that `deterministic: true` excludes."""


def describe_compile_fault(error: BaseException) -> str | None:
    """Return the message of an error while a denoiser is compiled; None for another one."""
    if type(error).__module__ not in ("torch._inductor.exc", "torch._dynamo.exc"):
        return None
    why = str(error).strip().partition("\n")[0]
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "the folder of TORCHINDUCTOR_CACHE_DIR")
    return (
        f"speed.compile: {why}; delete {folder}, in which a compiler that was killed leaves "
        "damaged files, or leave speed.compile out"
    )


def describe_inexact(error: BaseException) -> str | None:
    """Return the sentence for an operation that has no exact form; None for another error."""
    found = INEXACT.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    return (
        f"deterministic: {found[1]} cannot give equal bytes on this GPU; set deterministic=false, "
        "or take a CPU"
    )


def describe_worker_fault(error: BaseException) -> str | None:
    """Return the sentence for a lost process of a data loader; None for another error."""
    found = WORKER.search(str(error))
    if found is None:
        return None
    how = f" (signal: {found['signal'].strip()})" if found["signal"] else ""
    return (
        f"a process that prepares examples was ended from outside{how}, most likely by the system "
        "because memory ran out; lower data.num_workers or the size of the examples, or free memory"
    )


def is_system_fault(error: BaseException) -> bool:
    """Return whether the system lacks files or processes, so that no file at hand is to blame."""
    lacking = errno.EMFILE, errno.ENFILE, errno.ENOMEM
    is_lacking = isinstance(error, OSError) and error.errno in lacking
    return is_lacking or describe_worker_fault(error) is not None


@contextmanager
def keys_named(recipe: object) -> Iterator[None]:
    """Add the key of the recipe that names the file to errors of files in the block."""
    try:
        yield
    except OSError as error:
        if (path := path_of(error)) and (key := key_of(recipe, path)):
            error.add_note(key)
        raise


@contextmanager
def memory_explained(remedy: Callable[[], str]) -> Iterator[None]:
    """Add what uses the memory, and what to lower, to errors of too little memory in the block.

    The values of the block are released first, so that there is memory to work it out.
    """
    try:
        yield
    except Exception as error:
        if is_memory_fault(error):
            traceback.clear_frames(error.__traceback__)
            error.add_note(remedy())
        raise


def key_of(recipe: object, path: str) -> str:
    """Return the dotted key whose value is this path, or the nearest folder above it; or ""."""
    place = os.path.abspath(path)  # noqa: PTH100 (it may be too long for the system)
    best, length = "", 0
    for key, value in texts_of(recipe):
        named = os.path.abspath(os.path.expanduser(value))  # noqa: PTH100, PTH111
        inside = place == named or place.startswith(f"{named}{os.sep}")
        if inside and len(named) > max(length, 1):
            best, length = key, len(named)
    return best


def texts_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys and the values of all texts in a recipe."""
    if isinstance(value, str):
        if value and "\n" not in value and "\0" not in value:
            yield key, value
        return
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        value = {str(index): inner for index, inner in enumerate(value)}
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_of(inner, f"{key}.{name}" if key else str(name))
