"""What the processes of a run decide together."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from inference.runtime import InputError, Interrupted
from inference.runtime import StopSignals as SignalsOfProcess
from train.common.errors import RunEndedError

T = TypeVar("T")


def of_first(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What the first process finds, in all of them; an InputError of its too."""
    if accelerator.num_processes == 1:
        return decide()
    found: list[T | InputError | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [decide()]
        except InputError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]  # pyright: ignore[reportReturnType]


def of_all(accelerator: Accelerator, values: list[T]) -> list[T]:
    """The values of all processes, one after the other."""
    if accelerator.num_processes == 1:
        return values
    return gather_object(values)


class ProcessLostError(RunEndedError, RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|gloo|NCCL|Socket Timeout|process group", re.I
)
"""What libraries say of a process that is gone; gloo does so by a plain RuntimeError."""


@contextmanager
def lost_processes_told(is_one_of_several: Callable[[], bool]) -> Iterator[None]:
    """Tells in plain words that another process has ended.

    Raises:
        ProcessLostError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if not (is_one_of_several() and LOST.search(str(error))):
            raise
        first_line = str(error).strip().splitlines()[0]
        raise ProcessLostError(
            f"another process of this run has ended (see what it said): {first_line}; resume=true "
            "goes on from the newest checkpoint"
        ) from error


__all__ = ["Interrupted", "StopSignals"]


class StopSignals(SignalsOfProcess):
    """The first SIGINT or SIGTERM asks the run to end; the second ends it at once."""

    def of_all(self, accelerator: Accelerator) -> int:
        """The signal that one of the processes has had, known to all of them; 0 for none."""
        if accelerator.num_processes == 1:
            return self.number
        flags = accelerator.gather(torch.tensor([self.number], device=accelerator.device))
        return int(flags.max())
