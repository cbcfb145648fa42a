"""The sizes of training examples that a base model accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class FrameArithmetic(Protocol):
    """How a video VAE counts frames."""

    @property
    def frame_chunk(self) -> int:
        """Frames that are encoded at a time."""
        ...

    def latent_frames(self, frames: int) -> int:
        """Return the latent frames of a clip of so many frames."""
        ...

    def check(self, key: str, frames: int) -> int:
        """Return the latent frames of a clip; InputError, naming the key, if it does not fit."""
        ...


def accept(width: int, height: int, latent_frames: int) -> str | None:
    """Accept every size."""
    return None


@dataclass(frozen=True)
class SizeRules:
    """Sizes in pixels, and of clips frames."""

    step: int
    """Widths and heights are multiples of it."""
    width: int
    """Of the examples that the model was made for."""
    height: int
    frames: FrameArithmetic | None = None
    """None of a model of images."""
    takes_first_frames: bool = False
    """Whether the model is conditioned on the first frame of a clip."""
    check: Callable[[int, int, int], str | None] = accept
    """Width, height and latent frames -> a warning, if the model was not trained at this size.
    Raises InputError if it has no positions for it."""
