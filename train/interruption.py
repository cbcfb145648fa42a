"""How a run is stopped from outside: SIGINT and SIGTERM."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class Interrupted(Exception):  # noqa: N818 - says what happened, as KeyboardInterrupt does
    """A signal stopped the run after its state was saved."""

    def __init__(self, number: int, saved: object) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {saved}")
        self.number = number


class StopSignals:
    """The first SIGINT or SIGTERM asks the run to end; the second ends it at once."""

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that this process has had; 0 for none."""

    @contextmanager
    def noted(self, say: Callable[[str], None]) -> Iterator[None]:
        """Notes signals instead of being ended by them; tells so by `say`."""

        def note(number: int, _: object) -> None:
            self.number = number
            for kind, handler in before.items():
                signal.signal(kind, handler)
            say("stopping after this step; once more stops at once")

        before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def of_all(self, accelerator: Accelerator) -> int:
        """The signal that one of the processes has had, known to all of them; 0 for none."""
        if accelerator.num_processes == 1:
            return self.number
        flags = accelerator.gather(torch.tensor([self.number], device=accelerator.device))
        return int(flags.max())
