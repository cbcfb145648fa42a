"""The typed recipe of a stage: a part of a run with examples of its own size."""

from dataclasses import dataclass

from train.faults import Faults, at_least


@dataclass
class StageConfig:
    """A part of a run (progressive resolution); what it does not say is as in the recipe."""

    steps: int | None = None
    """Optimizer steps of this stage. The last stage may leave it out: it gets those that are left
    of max_train_steps, which is always the sum."""
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
        """What it says of clips."""
        said = {"frames": self.frames, "height": self.height, "width": self.width}
        return {name: value for name, value in said.items() if value is not None}
