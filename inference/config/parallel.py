"""How several processes share the work of one clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Faults = Iterator[tuple[str, str]]


@dataclass
class ParallelConfig:
    """How several processes divide the work (docs/many_gpus.md)."""

    context: int = 1
    """Processes that compute one clip together, each a part of its frames (context parallelism);
    for video models. The number of processes must be a multiple of it, and the model's number of
    attention heads, too (docs/many_gpus.md#context-parallelism)."""

    def faults(self) -> Faults:
        if self.context < 1:
            yield "context", f"must be at least 1, got {self.context}"
