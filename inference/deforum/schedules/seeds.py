"""Seeds over the frames: Deforum's behaviours, and seeds derived from the run's seed.

The behaviours are those of Deforum for A1111 3.0 (`seed.py`). Whatever Deforum draws at random
(`random`, -1 in a schedule, redone generations) is derived here from the run's seed, the frame and
the purpose, so that a run can be repeated and resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

from inference.runtime import InputError

BEHAVIORS = ("iter", "fixed", "random", "ladder", "alternate", "schedule")
SEEDS = 2**32
"""Exclusive upper limit of random seeds."""


def draw_seed() -> int:
    """Return a random seed, for a run whose settings say -1."""
    return random.SystemRandom().randrange(SEEDS)


def derived_seed(run_seed: int, frame: int, purpose: str) -> int:
    """Return a seed below 2^32 derived from the run's seed, the frame and its purpose."""
    digest = hashlib.sha256(f"{run_seed}:{frame}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


class SeedSequence:
    """The seed of each generated frame.

    `at(frame)` is the frame's seed; `advance(frame)` moves on to the next one.
    """

    def __init__(
        self,
        behavior: str,
        seed: int,
        iter_n: int = 1,
        schedule: Sequence[float] | None = None,
    ) -> None:
        """Start a sequence before its first frame.

        Args:
            behavior: one of `BEHAVIORS`.
            seed: the run's seed, from 0; that of the first frame (with `schedule`, if that says
                so).
            iter_n: with `iter`, the number of frames after which the seed is incremented.
            schedule: with `schedule`, one seed per frame; below 0 means a random one.

        Raises:
            InputError: the behaviour is unknown, the seed is not drawn yet, or the schedule is
                missing.
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
        """Return the seed of a frame, from 0."""
        if self.behavior != "schedule" or self.schedule is None:
            return self.seed
        planned = int(self.schedule[frame])
        return derived_seed(self.run_seed, frame, "schedule") if planned < 0 else planned

    def advance(self, frame: int) -> None:
        """Move on to the next generated frame; `frame` is the one just finished."""
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
        """Return the seed of a frame, and advance."""
        seed = self.at(frame)
        self.advance(frame)
        return seed

    def state(self) -> dict[str, int]:
        """Return the state for `restore`."""
        return {"run_seed": self.run_seed, "seed": self.seed, "counter": self.counter}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue from a `state()`."""
        self.run_seed, self.seed = state["run_seed"], state["seed"]
        self.counter = state["counter"]
