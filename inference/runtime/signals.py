"""How work is stopped from outside: SIGINT and SIGTERM."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 - says what happened, as KeyboardInterrupt does
    """A signal stopped the work after its state was saved."""

    def __init__(self, number: int, saved: object) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {saved}")
        self.number = number


DEFAULT_HANDLERS = {
    signal.SIGINT: signal.default_int_handler,  # raises KeyboardInterrupt
    signal.SIGTERM: signal.SIG_DFL,
}


class StopSignals:
    """The first SIGINT or SIGTERM asks the work to end; the second ends it at once."""

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that this process has had; 0 for none."""

    @contextmanager
    def noted(self, say: Callable[[str], None], unit: str = "step") -> Iterator[None]:
        """Note the first signal, and announce by `say` what it does.

        From then on the default handlers stand, even where the signal was inherited as ignored, as
        shells start background jobs. SIGHUP stays as inherited: `nohup` has it ignored.
        """

        def note(number: int, _: object) -> None:
            self.number = number
            for kind, handler in DEFAULT_HANDLERS.items():
                signal.signal(kind, handler)
            say(f"stopping after this {unit}; once more stops at once")

        before = {kind: signal.signal(kind, note) for kind in DEFAULT_HANDLERS}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
