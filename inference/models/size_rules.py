"""The sizes and lengths that a base model accepts, and the nearest ones to others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from inference.runtime import InputError


class FrameArithmetic(ABC):
    """The arithmetic of a video VAE: frames, latent frames, and which clips keep their length."""

    frame_chunk: int
    """Frames that are encoded at a time."""

    @abstractmethod
    def latent_frames(self, frames: int) -> int:
        """Return the latent frames of a clip of so many frames."""

    @abstractmethod
    def decoded_frames(self, latent_frames: int) -> int:
        """Return the frames that are decoded from so many latent frames."""

    @abstractmethod
    def words(self, latent_multiple: int = 1) -> str:
        """State in one clause which numbers of frames fit."""

    def fits(self, frames: int, latent_multiple: int = 1) -> bool:
        """Return whether a clip keeps its length, with a multiple of latent frames."""
        latent_frames = self.latent_frames(frames)
        return latent_frames % latent_multiple == 0 and self.decoded_frames(latent_frames) == frames

    def nearest(self, frames: int, latent_multiple: int = 1) -> tuple[int | None, int]:
        """Return the longest clip that fits up to a length, if any, and the shortest from it on."""
        below = (n for n in range(frames, 0, -1) if self.fits(n, latent_multiple))
        above = (n for n in count(max(frames, 1)) if self.fits(n, latent_multiple))
        return next(below, None), next(above)

    def check(self, key: str, frames: int, latent_multiple: int = 1) -> int:
        """Return the latent frames of a clip with the frames of option `key`.

        Args:
            key: the user's name of the number.
            frames: frames of the clip.
            latent_multiple: the required divisor of the number of latent frames; 2 for
                video-to-video with CogVideoX 1.5, as `video_to_video_multiple` says.

        Raises:
            InputError: the clip would change its length, or cannot be cut into patches; the message
            has
                the nearest possible numbers of frames.
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
    """Allowed sizes in pixels, and in frames for clips."""

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
    takes_masks: bool = False
    """Whether the model is conditioned on a mask and on the image without the masked part."""
    takes_scores: bool = False
    """Whether the model is conditioned on an aesthetic score, after the sizes."""


def check_size(key: str, pixels: int, step: int) -> None:
    """Reject a width or height that is no multiple of `step`.

    Raises:
        InputError: the message has the nearest possible sides.
    """
    if pixels > 0 and pixels % step == 0:
        return
    below = max(pixels, 0) // step * step
    use = f"{below} or {below + step}" if below else f"{step}"
    raise InputError(f"{key}: {pixels} is no multiple of {step}, as this model needs; use {use}")


@dataclass(frozen=True)
class RoundedSize:
    """A size by the rule, and the changes."""

    width: int
    height: int
    changed: tuple[str, ...] = ()
    """One line per side that was rounded, to be shown to the user."""


def rounded_size(width: int, height: int, step: int) -> RoundedSize:
    """Return the nearest multiples of `step` (halves round up), at least one."""
    sides = {"width": width, "height": height}
    rounded = {key: max((pixels + step // 2) // step, 1) * step for key, pixels in sides.items()}
    changed = tuple(
        f"{key}: {rounded[key]} instead of {pixels}, which is no multiple of {step}"
        for key, pixels in sides.items()
        if rounded[key] != pixels
    )
    return RoundedSize(rounded["width"], rounded["height"], changed)
