"""Threads that decode images while others are encoded, and write files meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from train.data.pictures import quiet

Value = TypeVar("Value")
Result = TypeVar("Result")

THREADS = 4
"""Threads that decode or write; the encoder has its own."""


@contextmanager
def prefetch(
    work: Callable[[Value], Result], values: Iterable[Value], depth: int = 2 * THREADS
) -> Iterator[Iterator[Future[Result]]]:
    """Do work on values in threads while the block lasts.

    Within the block Pillow's warnings are silenced, which threads could not do by themselves.

    Args:
        work: may run in any thread.
        values: its arguments.
        depth: maximum number of values in progress, or finished and not yet consumed.

    Yields:
        The future of each value, in order; `result()` raises what the work raised.
    """
    with quiet():
        pool = ThreadPoolExecutor(min(THREADS, depth))

        def results() -> Iterator[Future[Result]]:
            waiting: deque[Future[Result]] = deque()
            for value in values:
                waiting.append(pool.submit(work, value))
                if len(waiting) >= depth:
                    yield waiting.popleft()
            yield from waiting

        try:
            yield results()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def write_behind(
    work: Callable[..., object], depth: int = 4 * THREADS
) -> Iterator[Callable[..., None]]:
    """Yield a function that queues work for threads; all of it is done when the block ends.

    An exception of the work is raised by a later call, or at the end.
    """
    waiting: deque[Future[Any]] = deque()

    def do(*arguments: Any) -> None:
        waiting.append(pool.submit(work, *arguments))
        while len(waiting) >= depth or (waiting and waiting[0].done()):
            waiting.popleft().result()

    with ThreadPoolExecutor(THREADS) as pool:
        yield do
        while waiting:
            waiting.popleft().result()
