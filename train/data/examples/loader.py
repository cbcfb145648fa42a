"""Make micro-batches of examples."""

import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


AHEAD = 2
"""Micro-batches that threads prepare in advance."""


def build_loader(examples: Examples, batches: MicroBatches) -> Iterable[Any]:
    """Return a loader of the batches in stream order; independent of the number of workers.

    It yields a `Batch`, or in its place the DataError of one of its examples.

    For a GPU they are in pinned memory; without workers threads prepare them in advance.

    Raises:
        InputError: so many workers need more open files than the system allows.
    """
    workers = examples.config.num_workers
    if not workers and uses_gpu():
        return LoaderAhead(examples, batches)
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


class LoaderAhead:
    """Micro-batches that threads prepare while a GPU computes."""

    def __init__(self, examples: Examples, batches: MicroBatches) -> None:
        self.examples = examples
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch | DataError]:
        """Yield them in order; once it ends or is closed, nothing is prepared any more.

        An exception is raised in the place of its micro-batch.
        """
        warnings.filterwarnings("ignore", module=r"PIL\.")  # `quiet` cannot be entered in threads
        waiting: deque[Future[Batch | DataError]] = deque()
        pool = ThreadPoolExecutor(AHEAD)
        try:
            for positions in self.batches:
                waiting.append(pool.submit(self.prepare, positions))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def prepare(self, positions: list[int]) -> Batch | DataError:
        """Return a micro-batch in pinned memory, or the error of one of its examples."""
        batch = collate(self.examples.__getitems__(positions))
        return batch if isinstance(batch, DataError) else pinned(batch)


def pinned(batch: Batch) -> Batch:
    """Return a micro-batch with its tensors in pinned memory, which GPUs read by themselves."""

    def pin(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.contiguous().pin_memory()
        return [pin(one) for one in value] if isinstance(value, list) else value

    return {name: pin(value) for name, value in batch.items()}  # pyright: ignore[reportReturnType]


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
