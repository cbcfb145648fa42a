"""Guided images: init images are blended towards given images (Deforum 3.0's looper).

`generate.py` of Deforum for A1111 3.0: image k is that of the last keyframe, the init image is
blended with it, and the result takes the colours of a weaker blend.
"""

from __future__ import annotations

import json
from math import cos
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from inference.deforum.geometry import blend
from inference.deforum.schedules import frame_names, frame_of, open_picture
from inference.deforum.settings import FormulaError
from inference.images import correct_colors
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.schedules import Script

AWAY = 0.07
"""Weight of the image outside the tweening frames."""

LONE_GAP = 25
"""Frames between keyframes if there is only one."""


class Looper:
    """The guiding images and their weights.

    Args:
        script: the animation, with `use_looper` on.

    Raises:
        InputError: `init_images` is not a JSON object of frames and files, or a file is missing.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        files = keyed_files(script["init_images"], script.max_frames, script.seed)
        self.frames = sorted(files)
        self.pictures = {
            frame: open_picture(path, f"init_images, frame {frame}", script.width, script.height)
            for frame, path in files.items()
        }

    def first(self) -> np.ndarray:
        """Return the first image of the animation."""
        return self.pictures[self.frames[0]]

    def picture(self, frame: int) -> np.ndarray:
        """Return the guiding image of a frame, uint8 RGB."""
        return self.pictures[max((f for f in self.frames if f <= frame), default=self.frames[0])]

    def share(self, frame: int) -> float:
        """Return the guiding image's weight in the init image, 0 … 1.

        `blendFactorMax` - `blendFactorSlope` cos((f mod T) / (T / 2)) while f mod gap <= T, with T
        tweening frames; else 0.07.
        """
        tween = int(self.script.number("tweening_frames_schedule", frame))
        gap = self.gap(frame)
        if tween < 1 or gap < 1 or frame % gap > tween:
            return AWAY
        most = self.script.number("blendFactorMax", frame)
        slope = self.script.number("blendFactorSlope", frame)
        return min(max(most - slope * cos((frame % tween) / (tween / 2)), 0.0), 1.0)

    def gap(self, frame: int) -> int:
        """Return the frames between the keyframes around a frame; at a keyframe, the later gap."""
        gaps = [
            after - before
            for before, after in zip(self.frames, self.frames[1:], strict=False)
            if before <= frame <= after
        ]
        return gaps[-1] if gaps else LONE_GAP

    def guide(self, init: np.ndarray, frame: int) -> np.ndarray:
        """Return the init image blended with the guiding image, uint8."""
        return blend(init, self.picture(frame), self.share(frame))

    def color(self, result: np.ndarray, guided: np.ndarray, frame: int) -> np.ndarray:
        """Return the generated image in the colours of the guided init image; uint8."""
        factor = min(max(self.script.number("color_correction_factor", frame), 0.0), 1.0)
        target = blend(guided, self.picture(frame), factor)
        return np.asarray(correct_colors(Image.fromarray(result), Image.fromarray(target)))


def keyed_files(value: Any, max_frames: int, seed: int) -> dict[int, str]:
    """Return frame -> file of `init_images`, which is JSON in a text; frames may be formulas.

    Raises:
        InputError: the text is something else.
    """
    try:
        pairs = json.loads(value) if isinstance(value, str) else value
        items = dict(pairs).items()
    except (ValueError, TypeError, RecursionError) as error:
        example = '{"0": "first.png", "max_f/2": "second.png"}'
        raise InputError(f"init_images: expected JSON such as {example}; {error}") from error
    files: dict[int, str] = {}
    for key, path in items:
        try:
            frame = frame_of(str(key), frame_names(max_frames, seed))
        except FormulaError as error:
            raise InputError(f"init_images: the frame {key!r} {error}") from None
        files[max(frame, 0)] = str(path)
    if not files:
        raise InputError("init_images: names no image; use_looper needs at least one")
    return files
