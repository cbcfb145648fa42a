"""Stop work from outside: SIGINT and SIGTERM."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 - named like KeyboardInterrupt
    """A signal stopped the work after its state was saved."""

    def __init__(self, number: int, saved: object) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {saved}")
        self.number = number


DEFAULT_HANDLERS = {
    signal.SIGINT: signal.default_int_handler,  # raises KeyboardInterrupt
    signal.SIGTERM: signal.SIG_DFL,
}


class StopSignals:
    """The first SIGINT or SIGTERM requests the work to end; the second ends it at once."""

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal that this process received; 0 for none."""

    @contextmanager
    def noted(self, log: Callable[[str], None], unit: str = "step") -> Iterator[None]:
        """Note the first signal, and log its effect.

        From then on the default handlers stand, even where the signal was inherited as ignored, as
        shells start background jobs. SIGHUP stays as inherited: `nohup` has it ignored.
        """

        def note(number: int, _: object) -> None:
            self.number = number
            for kind, handler in DEFAULT_HANDLERS.items():
                signal.signal(kind, handler)
            log(f"stopping after this {unit}; a second signal stops at once")

        before = {kind: signal.signal(kind, note) for kind in DEFAULT_HANDLERS}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
