"""The typed recipe of validation: the loss of pictures that are not learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from train.faults import Faults, at_least

if TYPE_CHECKING:
    from train.config import TrainRecipe


@dataclass
class ValidationConfig:
    """The loss of pictures that are not learned, always at the same noise and timesteps."""

    split: float | None = None
    """Share of the pictures that is held back from training, chosen by their names and `seed`:
    which other pictures there are moves none. One of split and path must be given."""
    path: str | None = None
    """A folder of other pictures (or clips) with captions, found as data.path's are."""
    every_n_steps: int = 500
    """Steps between validations; also before the first step and after the last."""
    timesteps: list[int] = field(default_factory=list)
    """Timesteps at which each picture is looked at; without them num_timesteps."""
    num_timesteps: int = 4
    """So many timesteps, in the middle of equal parts of those that are trained (kohya takes 4)."""
    max_examples: int | None = None
    """At most so many pictures, chosen by name as `split` does; the others are held back all the
    same."""
    seed: int = 0
    """Of the choice of pictures and of the noise, apart from the run's seed, so that runs of
    several seeds can be compared."""

    def faults(self) -> Faults:
        if (self.split is None) == (self.path is None):
            yield "split", "or path must be given, one of them"
        if self.split is not None and not 0 < self.split < 1:
            yield "split", f"must lie between 0 and 1, got {self.split}"
        yield from at_least(
            1,
            every_n_steps=self.every_n_steps,
            num_timesteps=self.num_timesteps,
            max_examples=self.max_examples,
        )
        if len(set(self.timesteps)) < len(self.timesteps) or min(self.timesteps, default=0) < 0:
            yield "timesteps", f"must be different numbers from 0 on, got {self.timesteps}"
        if not 0 <= self.seed < 2**63:
            yield "seed", f"must lie in 0 … 2^63-1, got {self.seed}"

    def idle(self) -> Faults:
        if self.timesteps and self.num_timesteps != 4:
            yield "num_timesteps", "has no effect with timesteps"


def idle_validation(recipe: TrainRecipe) -> Faults:
    """What of it has no effect."""
    validation = recipe.validation
    if validation is None:
        return
    if validation.timesteps and not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "validation.timesteps", f"has no effect: objective.type: {kind} has none"
