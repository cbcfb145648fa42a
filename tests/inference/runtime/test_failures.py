"""Failures of the system, as the commands report them."""

import errno
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.elastic.utils.distributed import create_c10d_store

from inference.runtime import InputError, command, keys_named, memory_explained, run_command
from inference.runtime.failures import key_of


@dataclass
class Data:
    path: str = "pictures"
    extensions: list[str] = field(default_factory=lambda: [".txt"])


@dataclass
class Recipe:
    output_dir: str = "/runs"
    name: str = "mine"
    data: Data = field(default_factory=Data)
    subsets: dict[str, Data] = field(default_factory=dict)


RECIPE = Recipe(data=Data("/data/pictures"), subsets={"cats": Data("/data/pictures/cats")})


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/data/pictures", "data.path"),
        ("/data/pictures/a.png", "data.path"),
        ("/data/pictures/cats/a.png", "subsets.cats.path"),
        ("/runs/mine/logs", "output_dir"),
        ("/data/picturesque", ""),
        ("/etc/passwd", ""),
        (f"/runs/{'a' * 5000}", "output_dir"),
    ],
)
def test_the_key_of_a_file(path: str, key: str) -> None:
    assert key_of(RECIPE, path) == key


def fail_with(error: BaseException) -> Callable[[list[str]], int]:
    def work(arguments: list[str]) -> int:
        with keys_named(RECIPE), memory_explained(lambda: "lower train_batch_size"):
            raise error

    return work


def os_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


LOST = "DataLoader worker (pid 7) is killed by signal: Killed. Details are lost"
GONE = "DataLoader worker (pid(s) 7, 8) exited unexpectedly"
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
HOST = "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"
CASES = {
    "no access": (
        os_error(errno.EACCES, "/data/pictures/a.png"),
        2,
        "data.path: /data/pictures/a.png: Permission denied; give this user the right",
    ),
    "too long": (
        os_error(errno.ENAMETOOLONG, f"/x/{'a' * 300}"),
        2,
        f"/x/{'a' * 97}…{'a' * 100}: File name too long; a name has at most 255 bytes",
    ),
    "circle": (os_error(errno.ELOOP, "a"), 2, "a: Too many levels of symbolic links; its links go"),
    "full": (os_error(errno.ENOSPC, "/runs/mine/x"), 1, "output_dir: /runs/mine/x: No space left"),
    "read only": (os_error(errno.EROFS, "/o/x"), 1, "/o/x: Read-only file system; nothing can be"),
    "limit": (os_error(errno.EFBIG, "/o/x"), 1, "/o/x: File too large; the disk's format or"),
    "descriptors": (os_error(errno.EMFILE), 1, "Too many open files; raise the limit (`ulimit -n "),
    "of a worker": (
        OSError("Caught OSError in DataLoader worker process 0.\n[Errno 24] Too many open files"),
        1,
        "Too many open files; raise the limit",
    ),
    "of torch": (
        RuntimeError("Too many open files. Communication with the workers is no longer possible"),
        1,
        "Too many open files; raise the limit",
    ),
    "zero byte": (ValueError("embedded null byte"), 2, "a path contains the character U+0000"),
    "input": (InputError("x: \x1b[2Jwrong"), 2, "x: \\x1b[2Jwrong"),
    "device": (
        torch.OutOfMemoryError(OOM),
        1,
        "the device has not enough memory for 2.00 GiB more; lower train_batch_size",
    ),
    "inexact": (
        RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you"),
        2,
        "deterministic: cumsum_cuda_kernel cannot give equal bytes on this GPU; set deterministic=",
    ),
    "host": (
        RuntimeError(HOST),
        1,
        "the system has not enough memory; lower train_batch_size",
    ),
    "numpy": (
        MemoryError("Unable to allocate 3.00 TiB for an array"),
        1,
        "the system has not enough memory for 3.00 TiB more; lower train_batch_size",
    ),
    "killed": (
        RuntimeError(LOST),
        1,
        "a process that prepares examples was ended from outside (signal: Killed), most likely by",
    ),
    "gone": (RuntimeError(GONE), 1, "a process that prepares examples was ended from outside, "),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failure_is_one_message(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, status, message = CASES[case]
    assert run_command("work", fail_with(error), []) == status
    err = capsys.readouterr().err
    assert err.startswith(f"work: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("value", ["", "max_split_size_mb:64", "expandable_segments:True"])
def test_a_full_gpu_names_the_allocator(
    value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is set already; never for the system's memory."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", value)
    hint = "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    assert run_command("work", fail_with(torch.OutOfMemoryError(OOM)), []) == 1
    assert (hint in capsys.readouterr().err) == ("expandable" not in value)
    assert run_command("work", fail_with(RuntimeError(HOST)), []) == 1
    assert hint not in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("work", fail_with(ZeroDivisionError()), [])
    with pytest.raises(RuntimeError, match="shape"):
        run_command("work", fail_with(RuntimeError("shape mismatch")), [])


def test_a_library_that_writes_by_itself_names_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(arguments: list[str]) -> int:
        save_file({"a": torch.zeros(4)}, tmp_path / "none" / "a.safetensors")
        return 0

    assert run_command("work", work, []) == 2
    assert capsys.readouterr().err.startswith("work: No such file or directory; check the path")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make this process one of two of a job, whose launcher keeps a store as torchrun does."""
    store = create_c10d_store(True, "127.0.0.1", wait_for_workers=False)
    values = {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": store.port}
    for name, value in {**values, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))

    def become(rank: int) -> None:
        assert store.port
        monkeypatch.setenv("RANK", str(rank))

    return become


def test_an_error_of_all_processes_is_printed_once(
    job: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of one process is printed by it, whichever it is."""
    common, own = InputError("data.path: no pictures"), InputError("data.path: no second disk")
    for rank, error in ((1, common), (0, common), (1, own)):
        job(rank)
        assert run_command("train", fail_with(error), []) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train: data.path: no pictures", "train: data.path: no second disk"]


@pytest.mark.parametrize("lost", ["MASTER_ADDR", "MASTER_PORT", "the store", "another launcher"])
def test_without_a_store_every_process_prints(
    lost: str,
    job: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "PATIENCE", 0.2)
    if lost == "the store":
        monkeypatch.setenv("MASTER_PORT", "1")
    elif lost == "another launcher":
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    else:
        monkeypatch.delenv(lost)
    for rank in (0, 1):
        job(rank)
        assert run_command("train", fail_with(InputError("wrong")), []) == 2
    assert capsys.readouterr().err.splitlines() == ["train: wrong"] * 2


def test_errors_release_the_values_of_the_block() -> None:
    """What the step held is free before the remedy is worked out."""
    held: list[weakref.ref[torch.Tensor]] = []

    def step() -> None:
        batch = torch.zeros(4)
        held.append(weakref.ref(batch))
        raise MemoryError

    with (
        pytest.raises(MemoryError) as error,
        memory_explained(lambda: f"free: {held[0]() is None}"),
    ):
        step()
    assert error.value.__notes__ == ["free: True"]
