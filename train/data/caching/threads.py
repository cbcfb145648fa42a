"""Pictures are decoded while others are encoded, and files are written meanwhile."""

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
"""That decode, or write; the encoder has one of its own."""


@contextmanager
def ahead(
    work: Callable[[Value], Result], values: Iterable[Value], depth: int = 2 * THREADS
) -> Iterator[Iterator[Future[Result]]]:
    """Does work on values in threads, as long as the block lasts.

    Within it Pillow's warnings are silenced, which threads could not do by themselves.

    Args:
        work: as good in one thread as in another.
        values: what it is done on.
        depth: so many values are worked on, or done and not yet taken.

    Yields:
        What comes of each value, in their order; `result()` raises what the work has raised.
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
def behind(work: Callable[..., object], depth: int = 4 * THREADS) -> Iterator[Callable[..., None]]:
    """A function that has work done in threads; all of it is done when the block ends.

    What the work raises is raised by a later call, or at the end.
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
