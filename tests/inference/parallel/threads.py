"""A ring whose processes are threads of this one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any, TypeVar

import torch
from torch import Tensor

from inference.parallel import Ring

T = TypeVar("T")
PATIENCE = 60


class Post:
    """What the threads of a ring share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.boxes = {(a, b): Queue[Tensor]() for a in range(size) for b in range(size)}
        self.table: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)


class ThreadRing(Ring):
    """A thread's place in the ring."""

    def __init__(self, post: Post, place: int) -> None:
        self.post, self.place, self.size = post, place, post.size

    def meet(self, device: torch.device) -> None:
        self.post.barrier.wait()

    def exchange(
        self, sent: Sequence[tuple[int, Tensor]], received: Sequence[tuple[int, Tensor]]
    ) -> None:
        for to, tensor in sent:
            assert tensor.is_contiguous()
            self.post.boxes[self.place, to].put(tensor.clone())
        for came, buffer in received:
            tensor = self.post.boxes[came, self.place].get(timeout=PATIENCE)
            assert (tensor.shape, tensor.dtype) == (buffer.shape, buffer.dtype)
            buffer.copy_(tensor)

    def _all(self, value: T) -> list[T]:
        self.post.table[self.place] = value
        self.post.barrier.wait()
        values = list(self.post.table)
        self.post.barrier.wait()
        return values

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [one.clone() for one in self._all(tensor)]

    def of_first(self, value: T) -> T:
        return self._all(value)[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        return any(self._all(flag))


def in_ring(size: int, work: Callable[[Ring], T]) -> list[T]:
    """Return what the threads of a ring make; all that was sent has been received."""
    post = Post(size)

    def of(place: int) -> T:
        try:
            return work(ThreadRing(post, place))
        except BaseException:
            post.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        results = [one.result() for one in [pool.submit(of, place) for place in range(size)]]
    assert all(box.empty() for box in post.boxes.values())
    return results
