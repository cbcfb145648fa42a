"""The sizes and lengths that a base model accepts, and the nearest to those that it does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from inference.runtime import InputError


class FrameArithmetic(ABC):
    """How a video VAE counts: frames, latent frames, and which clips keep their length."""

    frame_chunk: int
    """Frames that are encoded at a time."""

    @abstractmethod
    def latent_frames(self, frames: int) -> int:
        """Return the latent frames of a clip of so many frames."""

    @abstractmethod
    def decoded_frames(self, latent_frames: int) -> int:
        """Return the frames that come out of so many latent frames."""

    @abstractmethod
    def words(self, latent_multiple: int = 1) -> str:
        """State in one clause which numbers of frames fit."""

    def fits(self, frames: int, latent_multiple: int = 1) -> bool:
        """Whether a clip comes back as long as it went in, with a multiple of latent frames."""
        latent_frames = self.latent_frames(frames)
        return latent_frames % latent_multiple == 0 and self.decoded_frames(latent_frames) == frames

    def nearest(self, frames: int, latent_multiple: int = 1) -> tuple[int | None, int]:
        """The longest clip that fits and is at most so long, if any, and the shortest not below."""
        below = (n for n in range(frames, 0, -1) if self.fits(n, latent_multiple))
        above = (n for n in count(max(frames, 1)) if self.fits(n, latent_multiple))
        return next(below, None), next(above)

    def check(self, key: str, frames: int, latent_multiple: int = 1) -> int:
        """Latent frames of a clip that `key` asks for.

        Args:
            key: what the user knows the number by.
            frames: frames of the clip.
            latent_multiple: what the number of latent frames must be a multiple of; 2 for a clip
                that a CogVideoX 1.5 draws over, as `video_to_video_multiple` says.

        Raises:
            InputError: the clip would come back longer or shorter, or cannot be cut into patches;
                names the nearest numbers of frames that can be used.
        """
        if frames > 0 and self.fits(frames, latent_multiple):
            return self.latent_frames(frames)
        below, above = self.nearest(frames, latent_multiple)
        use = f"{above}" if below is None else f"{below} or {above}"
        raise InputError(f"{key}: {frames} frames; {self.words(latent_multiple)}; use {use}")


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


def check_size(key: str, pixels: int, step: int) -> None:
    """Refuses a width or height that is no multiple of `step`.

    Raises:
        InputError: names the nearest sides that can be used.
    """
    if pixels > 0 and pixels % step == 0:
        return
    below = max(pixels, 0) // step * step
    use = f"{below} or {below + step}" if below else f"{step}"
    raise InputError(f"{key}: {pixels} is no multiple of {step}, as this model needs; use {use}")


@dataclass(frozen=True)
class RoundedSize:
    """A size by the rule, and what that changed."""

    width: int
    height: int
    changed: tuple[str, ...] = ()
    """One line per side that was asked for otherwise, to be told to the user."""


def rounded_size(width: int, height: int, step: int) -> RoundedSize:
    """The nearest multiples of `step` (halves go up), at least one."""
    sides = {"width": width, "height": height}
    rounded = {key: max((pixels + step // 2) // step, 1) * step for key, pixels in sides.items()}
    changed = tuple(
        f"{key}: {rounded[key]} instead of {pixels}, which is no multiple of {step}"
        for key, pixels in sides.items()
        if rounded[key] != pixels
    )
    return RoundedSize(rounded["width"], rounded["height"], changed)
