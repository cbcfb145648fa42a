"""How work is stopped from outside: SIGINT and SIGTERM."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 - says what happened, as KeyboardInterrupt does
    """A signal stopped the work after its state was saved."""

    def __init__(self, number: int, saved: object) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {saved}")
        self.number = number


class StopSignals:
    """The first SIGINT or SIGTERM asks the work to end; the second ends it at once."""

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that this process has had; 0 for none."""

    @contextmanager
    def noted(self, say: Callable[[str], None], unit: str = "step") -> Iterator[None]:
        """Notes signals instead of being ended by them; tells so by `say`."""

        def note(number: int, _: object) -> None:
            self.number = number
            for kind, handler in before.items():
                signal.signal(kind, handler)
            say(f"stopping after this {unit}; once more stops at once")

        before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
