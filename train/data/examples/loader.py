"""Micro-batches out of examples."""

import signal
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from train.common import Batch, DataError
from train.data.examples.examples import Examples
from train.data.examples.stream import MicroBatches


def build_loader(examples: Examples, batches: MicroBatches) -> DataLoader[Batch | DataError]:
    """Batches in the order of the stream; the same with any number of workers."""
    workers = examples.config.num_workers
    loader: Any = DataLoader(
        examples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        worker_init_fn=ignore_interrupts,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    return loader


def collate(examples: list[dict[str, Any]] | DataError) -> Batch | DataError:
    """Stacks tensors, and lists everything else: also the tensors of clips of several lengths."""
    if isinstance(examples, DataError):
        return examples
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return {  # pyright: ignore[reportReturnType]
        name: torch.stack(values) if is_stackable(values) else values
        for name, values in columns.items()
    }


def is_stackable(values: list[Any]) -> bool:
    """Whether they are tensors of one shape."""
    return isinstance(values[0], Tensor) and len({value.shape for value in values}) == 1


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the workers end when their trainer does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
