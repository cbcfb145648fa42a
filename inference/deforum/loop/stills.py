"""Modes whose frames do not depend on each other: Interpolation, Video Input, None.

Frames are generated in batches whose limits depend on the frame numbers alone, so that a resumed
run generates the same ones. Deforum for A1111 3.0: `render_modes.py`, `render.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.deforum.loop.feedback import Colors
from inference.deforum.loop.frame_requests import frame_request
from inference.deforum.loop.generator import FrameGenerator, FrameRequest
from inference.deforum.loop.loop import Show, draw_again
from inference.deforum.loop.masking import FrameMasks
from inference.deforum.pictures import grayscale
from inference.deforum.schedules import SeedSequence

if TYPE_CHECKING:
    from inference.deforum.loop.state import State
    from inference.deforum.schedules import Script


@dataclass
class IndependentFrames:
    """Generates frames in batches.

    Raises:
        InputError: the init image cannot be opened.
    """

    script: Script
    generator: FrameGenerator
    masks: FrameMasks
    """Which parts change."""
    colors: Colors
    """Only with an image, as no frame is passed on to the next."""
    seeds: SeedSequence
    show: Show
    """Receives every frame."""
    batch_size: int
    """Frames requested at once."""

    def __post_init__(self) -> None:
        self.is_video = self.script["animation_mode"] == "Video Input"
        self.first = None if self.is_video else self.script.init_picture()

    def run(self, state: State, saved: Callable[[State], None]) -> None:
        """Generate the remaining frames; call `saved` after each batch."""
        while state.frame < self.script.max_frames:
            end = (state.frame // self.batch_size + 1) * self.batch_size
            frames = range(state.frame, min(end, self.script.max_frames))
            seeds = [self.seeds.next(frame) for frame in frames]
            requests = [
                self.request(frame, seed) for frame, seed in zip(frames, seeds, strict=True)
            ]
            for frame, picture in zip(frames, self.drawn(requests), strict=True):
                self.show(frame, self.finished(picture, frame, state))
                state.emitted = frame + 1
            state.drawn |= {str(frame): seed for frame, seed in zip(frames, seeds, strict=True)}
            state.frame = frames.stop
            state.seeds = self.seeds.state()
            saved(state)

    def request(self, frame: int, seed: int) -> FrameRequest:
        """Return the request of a frame."""
        init, strength = self.first, self.script["strength"]
        if self.is_video:
            assert self.script.video is not None
            init, strength = self.script.video[frame], self.script.strength(frame)
        mask = None if init is None else self.masks.at(frame, init)
        return frame_request(self.script, frame, seed, init, strength, mask)

    def drawn(self, requests: list[FrameRequest]) -> list[np.ndarray]:
        """Return the images; generate blank ones again if the settings say so."""
        if self.script["reroll_blank_frames"] == "ignore":
            return self.generator.generate_batch(requests)
        return [draw_again(self.generator, request, self.script) for request in requests]

    def finished(self, picture: np.ndarray, frame: int, state: State) -> np.ndarray:
        """Apply colours and grey, and restore the original outside the mask."""
        if self.is_video:
            self.colors.begin(frame, state)
            picture = self.colors.after(picture, frame, state)
            if self.script["color_force_grayscale"]:
                picture = grayscale(picture)
        if not self.masks.is_on:
            return picture
        return self.masks.overlay(picture, frame, self.masks.at(frame, picture))
