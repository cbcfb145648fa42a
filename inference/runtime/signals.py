"""Stop work from outside: SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Interrupted(Exception):  # noqa: N818 - named like KeyboardInterrupt
    """A signal stopped the work after its state was saved."""

    def __init__(self, number: int, saved: object) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {saved}")
        self.number = number


class Stopped(KeyboardInterrupt):
    """A signal ended the work where it was; what was saved before is complete."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


DEFAULT_HANDLERS = {
    signal.SIGINT: signal.default_int_handler,  # raises KeyboardInterrupt
    signal.SIGTERM: signal.SIG_DFL,
}
"""The signals whose repetition ends the work at once, and their default handlers."""

STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if name in signal.Signals.__members__  # Windows lacks the last three
)
"""The signals that request the end: Ctrl-C, `kill`, a lost terminal, and those of batch systems."""


def heeded_signals() -> list[signal.Signals]:
    """Return the stop signals without a SIGHUP that was inherited as ignored, as `nohup` does.

    Shells start background jobs with SIGINT ignored; it is heeded all the same.
    """
    return [
        number
        for number in STOP_SIGNALS
        if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN
    ]


class StopSignals:
    """The first stop signal requests the work to end; a second SIGINT or SIGTERM ends it at once.

    A terminal that closes, or a batch system, may send SIGHUP, SIGUSR1 and SIGUSR2 several times:
    their repetition has no effect.
    """

    def __init__(self) -> None:
        self.number = 0
        """Number of the first stop signal that this process received; 0 for none."""
        self._is_urgent = False

    @contextmanager
    def noted(self, log: Callable[[str], None], unit: str = "step") -> Iterator[None]:
        """Note the first signal, and log its effect.

        After a SIGINT or SIGTERM the default handlers of these two stand, even where the signal was
        inherited as ignored.
        """

        def note(number: int, _: object) -> None:
            is_first = not self.number
            self.number = self.number or number
            for kind, handler in DEFAULT_HANDLERS.items() if number in DEFAULT_HANDLERS else ():
                signal.signal(kind, handler)
            if self._is_urgent:
                raise Stopped(self.number)
            if is_first:
                log(f"stopping after this {unit}; a second signal stops at once")

        before = {kind: signal.signal(kind, note) for kind in heeded_signals()}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a noted signal end the block where it is: for work that a resumed run does again.

        Raises:
            Stopped: a signal came, in the block or before it.
        """
        if self.number:
            raise Stopped(self.number)
        before, self._is_urgent = self._is_urgent, True
        try:
            yield
        finally:
            self._is_urgent = before

    def attempt(self, work: Callable[..., object], *arguments: object) -> None:
        """Do work that a resumed run does again; after a signal leave it out, or leave it early.

        `number` says afterwards whether one came.
        """
        with suppress(Stopped), self.at_once():
            work(*arguments)
