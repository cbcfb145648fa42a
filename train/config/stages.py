"""Typed options of stages and validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from inference.config import MOST_AT_ONCE, MOST_PIXELS
from train.config.rules import Faults, at_least

if TYPE_CHECKING:
    pass


@dataclass
class StageConfig:
    """A stage of a run (progressive resolution); keys that are not set are as in the recipe."""

    limits: ClassVar[dict[str, float]] = {
        "resolution": MOST_PIXELS,
        "height": MOST_PIXELS,
        "width": MOST_PIXELS,
        "train_batch_size": MOST_AT_ONCE,
    }

    steps: int | None = None
    """Optimizer steps of this stage. The last stage may omit it: it gets the rest of
    max_train_steps, which must be the sum of all stages."""
    resolution: int | None = None
    """data.resolution in this stage."""
    frames: int | None = None
    """data.clips.frames in this stage."""
    height: int | None = None
    """data.clips.height in this stage."""
    width: int | None = None
    """data.clips.width in this stage."""
    train_batch_size: int | None = None
    """train_batch_size in this stage."""
    gradient_accumulation_steps: int | None = None
    """gradient_accumulation_steps in this stage."""

    def faults(self) -> Faults:
        yield from at_least(1, **vars(self))

    @property
    def clip_size(self) -> dict[str, int]:
        """Return the options of clips that are set."""
        given = {"frames": self.frames, "height": self.height, "width": self.width}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class ValidationConfig:
    """The loss of images that are not trained on, always at the same noise and timesteps."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    split: float | None = None
    """Fraction of the images that is held out from training, chosen by name and `seed`: adding or
    removing other images moves none. One of split and path must be given."""
    path: str | None = None
    """A folder of other images (or clips) with captions, found in the same way as those of
    data.path."""
    every_n_steps: int = 500
    """Validate every n optimizer steps, and also before the first step and after the last."""
    timesteps: list[int] = field(default_factory=list)
    """Timesteps at which the loss of each image is measured; default: num_timesteps of them."""
    num_timesteps: int = 4
    """Number of timesteps, in the middle of equal intervals of those that are trained (kohya uses
    4)."""
    max_examples: int | None = None
    """Maximum number of images, chosen by name as in `split`; the others are held out all the
    same."""
    seed: int = 0
    """Seed of the choice of images and of the noise, independent of the run's seed, so that runs
    with several seeds can be compared."""

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
