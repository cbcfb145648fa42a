"""Work in portions that the processes of a run divide, and whose results they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.utils._pytree import tree_map

from inference.runtime import InputError, Stopped, StopSignals
from train.common.distributed import ProcessLostError, of_first

if TYPE_CHECKING:
    from accelerate import Accelerator

    from inference.parallel import Ring

T = TypeVar("T")
Result = TypeVar("Result")

NONE, NOT_FINITE, STOPPED, INPUT, OTHER = range(5)
"""How a process has fared in its portion; the highest number of all processes decides."""


@dataclass(frozen=True)
class Share:
    """This process's part of work in portions: every `count`-th one, from number `place` on.

    The portions are the same for any number of processes, and so are the results. Processes of the
    same place compute a portion together, and the first of them speaks for it.
    """

    accelerator: Accelerator | None = None
    """None for a process without others."""
    place: int = 0
    count: int = 1
    ring: Ring | None = None
    """Processes of this place, which encode each clip together; None if each encodes alone."""

    @property
    def processes(self) -> int:
        """Return the number of all processes."""
        return 1 if self.accelerator is None else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """Return the number of this process among all."""
        return 0 if self.accelerator is None else self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that writes files."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Return whether the results of this process count, among those of the same place."""
        return self.rank == self._speaker(self.place)

    @property
    def is_apart(self) -> bool:
        """Return whether no other process computes the same portions."""
        return self.count == self.processes

    def of_first(self, decide: Callable[[], T]) -> T:
        """Return what the first process decides; see `train.common.of_first`."""
        return decide() if self.accelerator is None else of_first(self.accelerator, decide)

    def divide(
        self,
        portions: Sequence[T],
        work: Callable[[T], Result],
        signals: StopSignals | None = None,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> list[Result]:
        """Return the results of all portions in their order; in other processes than the first [].

        See `divided`.
        """
        results = [*self._rounds(portions, work, signals, track, for_all=False)]
        return results if self.is_main else []

    def divided(
        self,
        portions: Sequence[T],
        work: Callable[[T], Result],
        signals: StopSignals | None = None,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Iterator[Result]:
        """Yield the results of all portions in their order, in every process.

        The processes take a portion each, exchange the results, and continue.

        Args:
            portions: the same in all processes.
            work: computes the result of one, which can be pickled and has no tensors on a GPU.
            signals: if given, a signal to one of the processes ends the work of all after this
                portion, and its own at once.
            track: shows the progress of this process's portions.

        Raises:
            Stopped: a signal came to one of the processes.
            FloatingPointError: a result is not finite, in one of them.
            InputError: one of them raised it.
            ProcessLostError: another process has failed.
        """
        return self._rounds(portions, work, signals, track, for_all=True)

    def _rounds(
        self,
        portions: Sequence[T],
        work: Callable[[T], Result],
        signals: StopSignals | None,
        track: Callable[[Sequence[int]], Iterable[int]],
        *,
        for_all: bool,
    ) -> Iterator[Result]:
        """Yield the results, unless `for_all` in the first process alone."""
        for start in track(range(0, len(portions), self.count)):
            ready: list[Result] = []
            own = portions[start : start + self.count][self.place : self.place + 1]
            with self.together(), self.urgent(signals):
                ready = [work(portion) for portion in own]
            for place in range(min(self.count, len(portions) - start)):
                yield from self._exchanged(ready if place == self.place else [], place, for_all)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes leave the context together: if one fails, all fail with its message.

        Raises:
            Stopped: a signal came to one of the processes.
            FloatingPointError: a value is not finite, in one of them.
            InputError: one of them raised it.
            ProcessLostError: another process has failed.
        """
        if self.processes == 1:
            yield
            return
        from accelerate.utils import gather_object

        fault: BaseException | None = None
        try:
            yield
        except (Exception, Stopped) as error:  # the others wait for this process
            fault = error
        faults = gather_object([described(fault)])
        kind, text = max(faults, key=lambda one: one[0])
        if fault is not None and (described(fault)[0] in (kind, INPUT, OTHER)):
            raise fault
        if kind == NOT_FINITE:
            raise FloatingPointError(text)
        if kind == STOPPED:
            raise Stopped(int(text))
        if kind == INPUT:
            raise InputError(text)
        if kind == OTHER:
            raise ProcessLostError(
                f"another process of this run has ended: {text}; resume=true continues from the "
                "newest checkpoint"
            )

    @contextmanager
    def urgent(self, signals: StopSignals | None) -> Iterator[None]:
        """Let a signal end the block where it is, if signals are given.

        If others compute it together with this process, the block ends first.

        Raises:
            Stopped: a signal came.
        """
        if signals is None:
            yield
        elif self.is_apart:
            with signals.at_once():
                yield
        else:
            yield
            if signals.number:
                raise Stopped(signals.number)

    def _speaker(self, place: int) -> int:
        """Return the rank that speaks for a place."""
        return place * (self.processes // self.count)

    def _exchanged(self, ready: list[Result], place: int, for_all: bool) -> list[Result]:
        """Return the result of a place, from the process that speaks for it."""
        is_everywhere = self.count == 1 or (self._speaker(place) == 0 and not for_all)
        if is_everywhere:
            return ready
        from accelerate.utils import broadcast_object_list

        speaker = self._speaker(place)
        sent = [alone(ready) if self.rank == speaker else []]
        (received,) = broadcast_object_list(sent, from_process=speaker)
        return ready if self.rank == speaker else received


ALONE = Share()


def alone(value: T) -> T:
    """Return a value with tensors of their own: of a part of a tensor, pickle writes all of it."""
    return tree_map(lambda one: one.clone() if isinstance(one, torch.Tensor) else one, value)


def described(fault: BaseException | None) -> tuple[int, str]:
    """Return the kind of a fault, and its text; exceptions themselves cannot always be pickled."""
    if fault is None:
        return NONE, ""
    if isinstance(fault, Stopped):
        return STOPPED, str(fault.number)
    if isinstance(fault, InputError):
        return INPUT, str(fault)
    if isinstance(fault, FloatingPointError):
        return NOT_FINITE, str(fault)
    return OTHER, f"{type(fault).__name__}: {fault}"
