"""Devices, progress bars, and several processes that share one job."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from inference.runtime.errors import InputError

LONGEST_WAIT = timedelta(days=7)
"""Maximum wait for another process's image. A process that has ended is noticed at once."""

T = TypeVar("T")
Result = TypeVar("Result")


class Processes:
    """This process among those started by accelerate or torchrun; without them, the only one."""

    def __init__(self, group_address: str | None = None) -> None:
        """Join the process group of this job.

        Args:
            group_address: where its store is found (torch's `init_method`), if not by the
                launcher's environment variables.
        """
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if self.count > 1:
            from accelerate import PartialState

            # What is exchanged is small and on the CPU, whatever device generates.
            PartialState(cpu=True, timeout=LONGEST_WAIT, init_method=group_address)

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes and prints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the torch device of a recipe's `device`; `auto` is a GPU of each process's own.

        Raises:
            InputError: as `choose_device`.
        """
        return choose_device(name, self.local_rank if self.count > 1 else None)

    def together(self, work: Callable[[], T]) -> T:
        """Return the result of `work` once all processes have finished; if one fails, all fail."""
        if self.count == 1:
            return work()
        results: list[T] = []
        failed: list[Exception] = []
        try:
            results.append(work())
        except Exception as error:  # the others wait for a result
            failed.append(error)
        from accelerate.utils import gather_object

        for error in gather_object(failed):
            raise error
        return results[0]

    def broadcast_from_main(self, value: T) -> T:
        """Return the first process's value in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share(
        self, jobs: Sequence[T], work: Callable[[T], Sequence[Result]], together: int = 1
    ) -> Iterator[Sequence[Result]]:
        """Yield each job's results in the jobs' order, in every process; each job is done by one.

        The processes take a job each, exchange the results, and continue. If one fails, all fail.

        Args:
            jobs: the same in all processes.
            work: does a job.
            together: neighbouring processes that do each job together, with the same results.
        """
        if self.count == 1:
            yield from map(work, jobs)
            return
        from accelerate.utils import gather_object

        group, place = divmod(self.rank, together)
        for start in range(0, len(jobs), self.count // together):
            own = start + group
            outcome: list[tuple[Sequence[Result], Exception | None]] = []
            try:
                outcome = [(work(jobs[own]), None)] if own < len(jobs) else []
            except Exception as error:  # the others wait for a result
                if together > 1 and not isinstance(error, (ValueError, FloatingPointError)):
                    raise  # one process's own, as its memory: its neighbours wait in the same job
                outcome = [((), error)]
            if place > 0 and outcome and outcome[0][1] is None:
                outcome = []  # the first neighbour has the same
            everyones = gather_object(outcome)
            for _, error in everyones:
                if error is not None:
                    raise error
            yield from (results for results, _ in everyones)

    def close(self) -> None:
        """Destroy the process group."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


Progress = Callable[[int, int], None]
"""Called after every step with (done, total); both count images times steps."""


def choose_device(name: str, number: int | None = None) -> torch.device:
    """Return the torch device of a recipe's `device`.

    `number` selects the GPU that `auto` takes, if not the first.

    Raises:
        InputError: the device is not available on this machine.
    """
    if name == "auto":
        known = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind, is_here in known.items() if is_here), "cpu")
        if name == "cuda" and number is not None:
            name = f"cuda:{number}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device: {name!r} cannot be used here: {reason}") from error


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device, without waiting for the device.

    A copy to a CUDA GPU is queued behind its other work, from pinned memory.
    """
    target = torch.device(device)
    if target.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(target)
    return tensor.contiguous().pin_memory().to(target, non_blocking=True)


FUSED_BF16 = (8, 0)
"""Compute capability from which NVIDIA's GPUs compute bf16 by themselves: Ampere."""


def computes_bf16(device: torch.device) -> bool:
    """Return whether a GPU computes bf16 by itself."""
    capability = torch.cuda.get_device_capability(device)
    return torch.version.hip is not None or capability >= FUSED_BF16


def warn_of_emulation(
    device: torch.device, formats: Mapping[str, str | None], kind: type[Warning]
) -> None:
    """Warn about bf16 on a GPU that only emulates it; PyTorch and accelerate call it supported.

    Args:
        device: what computes.
        formats: fp32, fp16 or bf16 by key of the recipe.
        kind: the class of the warning.
    """
    keys = [key for key, value in formats.items() if value == "bf16"]
    if not keys or device.type != "cuda" or computes_bf16(device):
        return
    capability = torch.cuda.get_device_capability(device)
    warnings.warn(
        f"{', '.join(keys)}: bf16: {torch.cuda.get_device_name(device)} (compute capability "
        f"{'.'.join(map(str, capability))}) only emulates it, without fused attention: slow, and "
        f"more memory. Take {', '.join(f'{key}=fp16' for key in keys)}; or fp32, if the model "
        "overflows in fp16",
        kind,
        stacklevel=2,
    )


EXACT_CUBLAS = (":4096:8", ":16:8")
"""Workspaces with which cuBLAS always gives the same bytes."""

PRICE = (
    "deterministic: equal inputs give equal bytes on this GPU. It costs time and memory: attention "
    "keeps its scores, heads x tokens² numbers per layer, and slower kernels are chosen"
)


def compute_exactly(device: torch.device, kind: type[Warning]) -> str | None:
    """Choose algorithms on a GPU that give the same bytes each time; return what it costs.

    PyTorch's notes on reproducibility: deterministic algorithms and cuDNN's, a fixed workspace of
    cuBLAS, and attention in single operations, since the fused kernels' gradients are sums in any
    order. Other devices stay as they are (CPUs give the same bytes anyway), with a warning.

    Raises:
        InputError: CUBLAS_WORKSPACE_CONFIG is set to a value that excludes it.
    """
    if device.type != "cuda":
        note = "deterministic: has no effect on a CPU, which gives equal bytes with equal threads"
        if device.type != "cpu":
            note = f"deterministic: has no effect on {device.type}: it is for CUDA's GPUs"
        warnings.warn(note, kind, stacklevel=2)
        return None
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", EXACT_CUBLAS[0])
    if workspace not in EXACT_CUBLAS:
        raise InputError(
            f"deterministic: CUBLAS_WORKSPACE_CONFIG is {workspace!r}; cuBLAS gives equal bytes "
            f"with {' and '.join(EXACT_CUBLAS)} alone. Unset the variable"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    attention = torch.backends.cuda
    attention.enable_math_sdp(True)
    for other in (
        attention.enable_flash_sdp,
        attention.enable_mem_efficient_sdp,
        attention.enable_cudnn_sdp,
    ):
        other(False)
    return PRICE


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt in glibc's malloc.h."""
LARGEST_IN_HEAP = 2**30
"""Bytes of the largest tensor that is taken from the heap instead of from the system."""


def keep_freed_memory() -> bool:
    """Let the process keep the memory that tensors on the CPU free, for the next ones.

    glibc returns large blocks to the system at once; in the next step the system clears their pages
    again, which takes a sixth of a step of SD 1.5. The peak is the same. Without effect where
    the C library has no such setting, and where the user has chosen one (`MALLOC_…_`).

    Returns:
        Whether the memory is kept.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    from_heap = set_option(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)  # before glibc 2.35 at most 32 MiB
    return bool(set_option(M_TRIM_THRESHOLD, -1) and from_heap)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a progress bar if standard error is a terminal; yield a function (done, total)."""
    from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from inference.runtime.console import open_console

    console = open_console(is_error=True)
    columns = BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    hidden = not console.is_terminal
    with Bar("drawing", *columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("drawing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
