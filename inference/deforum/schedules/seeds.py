"""Seeds over the frames: Deforum's behaviours, and seeds that follow from the run's own.

The behaviours are those of Deforum for A1111 3.0 (`seed.py`). Whatever Deforum draws by chance on
the way (`random`, -1 in a schedule, redone generations) follows here from the run's seed, the frame
and the purpose, so that a run can be repeated and resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

from inference.runtime import InputError

BEHAVIORS = ("iter", "fixed", "random", "ladder", "alternate", "schedule")
SEEDS = 2**32
"""Seeds that are drawn lie below this."""


def draw_seed() -> int:
    """A seed by chance, for a run whose settings say -1."""
    return random.SystemRandom().randrange(SEEDS)


def derived_seed(run_seed: int, frame: int, purpose: str) -> int:
    """A seed below 2^32 that follows from the run's seed, the frame and what it is for."""
    digest = hashlib.sha256(f"{run_seed}:{frame}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


class SeedSequence:
    """The seed of each frame that is generated.

    `at(frame)` is what a frame is generated with; after it `advance(frame)` goes on.
    """

    def __init__(
        self,
        behavior: str,
        seed: int,
        iter_n: int = 1,
        schedule: Sequence[float] | None = None,
    ) -> None:
        """The sequence before its first frame.

        Args:
            behavior: one of `BEHAVIORS`.
            seed: the run's seed, from 0; the first frame's (with `schedule`, if that says so).
            iter_n: with `iter`, after how many frames the seed goes up.
            schedule: with `schedule`, a seed a frame; below 0 stands for one by chance.

        Raises:
            InputError: no such behaviour; the seed is not drawn yet; a schedule is missing.
        """
        if behavior not in BEHAVIORS:
            raise InputError(
                f"seed_behavior: expected one of {', '.join(BEHAVIORS)}; got {behavior!r}"
            )
        if seed < 0:
            raise InputError(f"seed: expected a number from 0 on, drawn before; got {seed}")
        if iter_n < 1:
            raise InputError(f"seed_iter_N: must be at least 1, got {iter_n}")
        if behavior == "schedule" and schedule is None:
            raise InputError("seed_behavior: schedule needs seed_schedule")
        self.behavior = behavior
        self.run_seed = seed
        self.iter_n = iter_n
        self.schedule = schedule
        self.seed = seed
        self.counter = 0

    def at(self, frame: int) -> int:
        """The seed of a frame, from 0."""
        if self.behavior != "schedule" or self.schedule is None:
            return self.seed
        planned = int(self.schedule[frame])
        return derived_seed(self.run_seed, frame, "schedule") if planned < 0 else planned

    def advance(self, frame: int) -> None:
        """Goes on to the next generated frame; `frame` is the one just done."""
        match self.behavior:
            case "iter":
                self.seed += self.counter % self.iter_n == 0
                self.counter += 1
            case "ladder":
                self.seed += 2 if self.counter == 0 else -1
                self.counter = 1 - self.counter
            case "alternate":
                self.seed += 1 if self.counter == 0 else -1
                self.counter = 1 - self.counter
            case "random":
                self.seed = derived_seed(self.run_seed, frame, "random")

    def next(self, frame: int) -> int:
        """The seed of a frame, after which the sequence has gone on."""
        seed = self.at(frame)
        self.advance(frame)
        return seed

    def state(self) -> dict[str, int]:
        """What `restore` needs to go on from here."""
        return {"run_seed": self.run_seed, "seed": self.seed, "counter": self.counter}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on from where `state()` was taken."""
        self.run_seed, self.seed = state["run_seed"], state["seed"]
        self.counter = state["counter"]
