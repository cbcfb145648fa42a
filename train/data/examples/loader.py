"""Make micro-batches of examples."""

import signal
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from inference.runtime import STOP_SIGNALS, InputError, free_descriptors
from train.common import Batch, DataError, uses_gpu
from train.data.examples.examples import Examples
from train.data.examples.stream import MicroBatches

FILES_OF_A_WORKER = 8
"""Open files of this process for each worker: queues, a pipe, and tensors that are handed over."""


def build_loader(examples: Examples, batches: MicroBatches) -> DataLoader[Batch | DataError]:
    """Return a loader of the batches in stream order; independent of the number of workers.

    Raises:
        InputError: so many workers need more open files than the system allows.
    """
    workers = examples.config.num_workers
    check_descriptors(workers)
    loader: Any = DataLoader(
        examples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_the_trainer,
        pin_memory=uses_gpu(),
        generator=torch.Generator(),
    )
    return loader


def check_descriptors(workers: int) -> None:
    """Raise InputError if a process may not open as many files as its workers need.

    torch notices it halfway, with workers that nobody ends.
    """
    needed, left = FILES_OF_A_WORKER * workers, free_descriptors()
    if workers and left is not None and needed > left:
        raise InputError(
            f"data.num_workers: {workers} need about {needed} open files, and {left} more are "
            "allowed: raise the limit (`ulimit -n 4096`), or lower data.num_workers"
        )


def collate(examples: list[dict[str, Any]] | DataError) -> Batch | DataError:
    """Stack tensors, and list everything else, including tensors of clips of several lengths."""
    if isinstance(examples, DataError):
        return examples
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return {  # pyright: ignore[reportReturnType]
        name: torch.stack(values) if is_stackable(values) else values
        for name, values in columns.items()
    }


def is_stackable(values: list[Any]) -> bool:
    """Return whether the values are tensors of one shape."""
    return isinstance(values[0], Tensor) and len({value.shape for value in values}) == 1


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore the signals that stop a run, and reach all of its processes; workers end with it.

    Ctrl-C and a lost terminal reach all processes of the terminal, SIGTERM of a batch system those
    of the job. A second SIGTERM ends a worker that hangs when its trainer ends.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
