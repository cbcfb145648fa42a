"""Decisions that the processes of a run share."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from inference.runtime import InputError, Interrupted, describe_worker_fault, to_device
from inference.runtime import StopSignals as SignalsOfProcess
from train.common.errors import RunEndedError, SavingError

T = TypeVar("T")


def uses_gpu() -> bool:
    """Return whether accelerate computes on a CUDA GPU: one is here, and not forbidden."""
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def of_first(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Broadcast the result of the main process to all; an InputError or SavingError of it too."""
    if accelerator.num_processes == 1:
        return decide()
    found: list[T | InputError | SavingError | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [decide()]
        except (InputError, SavingError) as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], InputError | SavingError):
        raise found[0]
    return found[0]  # pyright: ignore[reportReturnType]


def of_all(accelerator: Accelerator, values: list[T]) -> list[T]:
    """Gather the values of all processes in one list."""
    if accelerator.num_processes == 1:
        return values
    return gather_object(values)


class ProcessLostError(RunEndedError, RuntimeError):
    """Another process of the run has ended, so that this one cannot continue."""


LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|gloo|NCCL|Socket Timeout|process group", re.I
)
"""Error messages of libraries about a lost process; gloo raises a plain RuntimeError."""


@contextmanager
def lost_processes_reported(is_one_of_several: Callable[[], bool]) -> Iterator[None]:
    """Report in plain words that another process of the run, or of a data loader, has ended.

    Raises:
        ProcessLostError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if (worker := describe_worker_fault(error)) is not None:
            raise ProcessLostError(
                f"{worker}. resume=true continues from the newest checkpoint"
            ) from error
        if not (is_one_of_several() and LOST.search(str(error))):
            raise
        first_line = str(error).strip().splitlines()[0]
        raise ProcessLostError(
            f"another process of this run has ended (see what it said): {first_line}; resume=true "
            "continues from the newest checkpoint"
        ) from error


__all__ = ["Interrupted", "StopSignals"]


class StopSignals(SignalsOfProcess):
    """The first signal requests the end of the run; a second SIGINT or SIGTERM ends it at once."""

    def of_all(self, accelerator: Accelerator) -> int:
        """Return the signal that one of the processes received, or 0; the same in all of them."""
        if accelerator.num_processes == 1:
            return self.number
        flags = accelerator.gather(to_device(torch.tensor([self.number]), accelerator.device))
        return int(flags.max())
