"""From the previous frame to the init image of the next one.

The order is that of Deforum for A1111 3.0 (`render.py`): camera, hybrid video, colours, grey,
contrast, anti-blur, noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.deforum.geometry import Camera, Pixels, to_bytes
from inference.deforum.pictures import (
    NoiseSettings,
    add_noise,
    anti_blur,
    color_values,
    contrast,
    grayscale,
    match_colors,
)
from inference.deforum.schedules import open_picture
from inference.deforum.settings import DEFORUM

if TYPE_CHECKING:
    from inference.deforum.loop.depths import Depths
    from inference.deforum.loop.hybrid_frames import HybridVideo
    from inference.deforum.loop.masking import FrameMasks
    from inference.deforum.loop.state import State
    from inference.deforum.schedules import Script

FIXED_SAMPLES = ("Image", "Video Input")
"""Modes of colour coherence whose sample is not a frame of the animation."""


class Colors:
    """Colour coherence: which image's colours frames match, and when.

    Args:
        script: the animation.

    Raises:
        InputError: `color_coherence_image_path` cannot be opened.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.mode: str = script["color_coherence"]
        self.is_on = self.mode != "None" and (self.mode != "Video Input" or script.colors_of_video)
        self.is_legacy = bool(script["legacy_colormatch"])
        self.image = None
        self.space: Any = "LAB" if self.mode in FIXED_SAMPLES else self.mode
        self.known: tuple[np.ndarray, Any] | None = None
        """The last sample and its values; most frames use the same sample."""
        if self.mode == "Image":
            path, key = script["color_coherence_image_path"], "color_coherence_image_path"
            self.image = open_picture(path, key, script.width, script.height)

    def begin(self, frame: int, state: State) -> None:
        """Set a sample that is not a frame of the animation."""
        if self.image is not None:
            state.color_sample = self.image
        every = max(1, self.script["color_coherence_video_every_N_frames"])
        if self.is_on and self.script.colors_of_video and frame % every == 0:
            assert self.script.video is not None
            state.color_sample = np.array(self.script.video[frame])

    def before(self, picture: Pixels, state: State) -> Pixels:
        """Return the init image in the sample's colours; if there is no sample, set it."""
        if not self.is_on:
            return picture
        if state.color_sample is None:
            state.color_sample = to_bytes(picture)
            return picture
        return self.matched(picture, state.color_sample)

    def after(self, picture: np.ndarray, frame: int, state: State) -> np.ndarray:
        """Return the generated image in the sample's colours."""
        if not self.is_on or state.color_sample is None:
            return picture
        is_first = frame == 0 and self.mode in FIXED_SAMPLES
        if not is_first and self.is_legacy:
            return picture
        return self.matched(picture, state.color_sample)

    def end(self, picture: np.ndarray, had_init: bool, strength: float, state: State) -> None:
        """Set a new sample if a frame was generated from nothing."""
        if not self.is_on or self.mode in FIXED_SAMPLES:
            return
        if (not self.is_legacy and not had_init) or (self.is_legacy and strength == 0):
            state.color_sample = picture.copy()

    def matched(self, picture: Pixels, sample: np.ndarray) -> Pixels:
        compat = self.script.compat
        if compat == DEFORUM:
            return match_colors(picture, sample, self.space, compat)
        if self.known is None or self.known[0] is not sample:
            self.known = sample, color_values(sample, self.space)
        return match_colors(picture, sample, self.space, compat, self.known[1])


@dataclass
class Feedback:
    """Makes the init image of a frame."""

    script: Script
    camera: Camera
    """Moves the previous frame."""
    depths: Depths
    """For 3D."""
    colors: Colors
    masks: FrameMasks
    """Where noise is added and sharpening applied."""
    hybrid: HybridVideo | None
    """The input video, if there is one."""

    def __post_init__(self) -> None:
        script = self.script
        self.noise = NoiseSettings(
            script["noise_type"],
            max(1, round(script["perlin_w"])),
            max(1, round(script["perlin_h"])),
            script["perlin_octaves"],
            script["perlin_persistence"],
        )

    def working(self, picture: np.ndarray) -> Pixels:
        """Return the image in the dtype used for processing: floats, but bytes in Deforum 3.0."""
        return picture if self.script.compat == DEFORUM else picture.astype(np.float32)

    def init(self, frame: int, seed: int, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Return the init image of a frame, from `state.feedback`, with and without its noise.

        Both are uint8 RGB.
        """
        assert state.feedback is not None
        before = self.working(state.feedback)
        picture = self.camera.move(before, frame, self.depths.of(before, frame, state))
        if self.hybrid is not None:
            picture = self.hybrid.composite(picture, frame, "Before Motion", before)
            movement = self.hybrid.movement(frame, before, state)
            picture = self.hybrid.move(picture, movement, frame)
            picture = self.hybrid.composite(picture, frame, "Normal", before)
        picture = self.colors.before(picture, state)
        return to_bytes(self.roughened(picture, frame, seed)), to_bytes(picture)

    def roughened(self, picture: Pixels, frame: int, seed: int) -> Pixels:
        """Apply grey, contrast, anti-blur and noise."""
        script, number = self.script, self.script.number
        if script["color_force_grayscale"]:
            picture = grayscale(picture)
        if (factor := number("contrast_schedule", frame)) != 1:
            picture = contrast(picture, factor)
        if (amount := number("amount_schedule", frame)) != 0:
            picture = anti_blur(
                picture,
                amount,
                int(number("kernel_schedule", frame)),
                number("sigma_schedule", frame),
                number("threshold_schedule", frame),
                self.masks.at(frame, picture),
                script.compat,
            )
        share = min(max(number("noise_schedule", frame), 0.0), 1.0)
        if share == 0:
            return picture
        where = self.masks.noise(frame, picture)
        return add_noise(picture, share, seed, self.noise, where, script.compat)
