"""The typed recipe of clips: how videos become examples."""

from dataclasses import dataclass
from typing import Literal

from train.faults import Faults, at_least


@dataclass
class ClipDataConfig:
    """How videos become examples of a video model; given, videos are learned from."""

    frames: int = 49
    """Frames of an example: 8k + 1 (9, 17, 25, 33, 41, 49, …, and 81 or 161 for CogVideoX 1.5)."""
    height: int | None = None
    """Of the examples in pixels; without it the base model's own."""
    width: int | None = None
    """Of the examples in pixels; without it the base model's own."""
    fps: float | None = None
    """Frames per second of the examples: CogVideoX was made with 8, 1.5 with 16. Clips of another
    rate are brought to it by taking the nearest frames. Without it every frame is taken."""
    part: Literal["start", "center", "random"] = "start"
    """Which part of longer clips is taken."""

    def faults(self) -> Faults:
        yield from at_least(1, frames=self.frames, height=self.height, width=self.width)
        if self.fps is not None and self.fps <= 0:
            yield "fps", f"must be above 0, got {self.fps}"

    @property
    def is_random(self) -> bool:
        """Whether one clip can give different frames."""
        return self.part == "random"
