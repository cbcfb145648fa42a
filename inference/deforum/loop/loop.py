"""The frame loop of the modes 2D and 3D: every frame starts from the previous one.

Deforum for A1111 3.0 (`render.py`); `diffuse` shows the order of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from inference.deforum.geometry import check_flow_method, optical_flow, to_bytes, warp_by_flow
from inference.deforum.loop.feedback import Colors, Feedback
from inference.deforum.loop.frame_requests import frame_request
from inference.deforum.loop.generator import FrameGenerator, FrameRequest
from inference.deforum.loop.hybrid_frames import HybridVideo
from inference.deforum.loop.looper import Looper
from inference.deforum.loop.masking import FrameMasks
from inference.deforum.loop.tweens import Tweens
from inference.deforum.pictures import grayscale
from inference.deforum.schedules import Block, SeedSequence, derived_seed

if TYPE_CHECKING:
    from inference.deforum.loop.state import State
    from inference.deforum.schedules import Script

Show = Callable[[int, np.ndarray], None]
"""Receives each complete frame, uint8 RGB (h, w, 3), in order."""


@dataclass
class Start:
    """The init image of a frame."""

    init: np.ndarray | None
    strength: float
    moved: np.ndarray | None = None
    """The previous frame, moved, without noise; None for the first frame."""


class FeedbackLoop:
    """Generates frame after frame.

    Args:
        script: the animation.
        generator: generates frames.
        feedback: makes init images; has the masks and the hybrid video.
        tweens: makes the frames between diffused ones.
        seeds: of the frames.
        show: receives every frame.

    Raises:
        InputError: a picture that the settings name cannot be opened.
    """

    def __init__(
        self,
        script: Script,
        generator: FrameGenerator,
        feedback: Feedback,
        tweens: Tweens,
        seeds: SeedSequence,
        show: Show,
    ) -> None:
        self.script = script
        self.generator = generator
        self.feedback = feedback
        self.colors: Colors = feedback.colors
        self.tweens = tweens
        self.masks: FrameMasks = feedback.masks
        self.hybrid: HybridVideo | None = feedback.hybrid
        self.seeds = seeds
        self.show = show
        self.looper = Looper(script) if script["use_looper"] else None
        self.first = script.init_picture()
        if script["optical_flow_redo_generation"] != "None":
            check_flow_method(
                script["optical_flow_redo_generation"], "optical_flow_redo_generation"
            )

    def run(self, state: State, saved: Callable[[State], None]) -> None:
        """Generate the remaining frames; call `saved` after each diffused frame and its block."""
        for block, following in zip(
            self.script.blocks, [*self.script.blocks[1:], None], strict=True
        ):
            if block.start < state.frame:
                continue
            self.draw(block, state)
            state.frame = self.script.max_frames if following is None else following.start
            state.seeds = self.seeds.state()
            saved(state)

    def draw(self, block: Block, state: State) -> None:
        """Diffuse the first frame of a block, and show all of its frames."""
        picture = self.diffuse(block.start, state)
        state.previous, state.previous_index = state.next, state.next_index
        state.next, state.next_index = self.feedback.working(picture), block.start
        state.feedback = state.next
        for frame, shown in self.tweens.pictures(block, state):
            self.show(frame, to_bytes(shown))
            state.emitted = frame + 1

    def diffuse(self, frame: int, state: State) -> np.ndarray:
        """Generate a frame: uint8 RGB."""
        seed = self.seeds.at(frame)
        self.colors.begin(frame, state)
        start = self.start(frame, seed, state)
        mask = self.masks.at(frame, start.init) if start.init is not None else None
        init = self.redone(start, frame, seed, mask)
        guided = None
        if self.looper is not None and init is not None:
            init = guided = self.looper.guide(init, frame)
        request = frame_request(self.script, frame, seed, init, start.strength, mask)
        picture = self.drawn(request)
        if self.looper is not None and guided is not None:
            picture = self.looper.color(picture, guided, frame)
        if self.hybrid is not None and frame > 0:
            picture = self.hybrid.composite(picture, frame, "After Generation", picture)
        picture = self.colors.after(picture, frame, state)
        if self.script["color_force_grayscale"]:
            picture = grayscale(picture)
        if self.masks.is_on:
            mask = self.masks.at(frame, picture) if mask is None else mask
            picture = self.masks.overlay(picture, frame, mask)
        self.colors.end(picture, start.init is not None, start.strength, state)
        state.drawn[str(frame)] = seed
        self.seeds.advance(frame)
        return picture

    def start(self, frame: int, seed: int, state: State) -> Start:
        """Return the init image of a frame, and how much of it stays."""
        strength = self.script.strength(frame)
        if self.looper is not None:
            strength = self.script.number("image_strength_schedule", frame)
        if state.feedback is not None:
            init, moved = self.feedback.init(frame, seed, state)
            return Start(init, strength, moved)
        if self.looper is not None:
            return Start(self.looper.first(), strength)
        if self.first is not None:
            return Start(self.first, self.script["strength"])
        return Start(None, 0.0)

    def redone(
        self, start: Start, frame: int, seed: int, mask: np.ndarray | None
    ) -> np.ndarray | None:
        """Return the init image after `optical_flow_redo_generation` and `diffusion_redo`."""
        init, script = start.init, self.script
        if init is None or start.moved is None or start.strength <= 0:
            return init
        if script["motion_preview_mode"]:
            return init
        request = frame_request(script, frame, seed, init, start.strength, mask)
        method = script["optical_flow_redo_generation"]
        if method != "None":
            again = replace(request, seed=derived_seed(script.seed, frame, "flow redo"))
            drawn = self.generator.generate(again)
            flow = optical_flow(start.moved, drawn, method)
            factor = script.number("redo_flow_factor_schedule", frame)
            init = warp_by_flow(drawn, flow, factor, script.compat)
        for number in range(int(script["diffusion_redo"])):
            other = derived_seed(script.seed, frame, f"redo {number}")
            init = self.generator.generate(replace(request, init=init, seed=other))
        return init

    def drawn(self, request: FrameRequest) -> np.ndarray:
        return draw_again(self.generator, request, self.script)


def draw_again(generator: FrameGenerator, request: FrameRequest, script: Script) -> np.ndarray:
    """Generate an image that is not blank, as far as `reroll_blank_frames` demands it.

    Raises:
        FloatingPointError: it is blank and the settings forbid that, or it is blank after all
            attempts; or a value is not finite although blank frames are skipped.
    """
    choice = script["reroll_blank_frames"]
    attempts = 1 + (max(0, int(script["reroll_patience"])) if choice == "reroll" else 0)
    for attempt in range(attempts):
        try:
            picture = generator.generate(replace(request, seed=request.seed + attempt))
        except FloatingPointError:
            if choice != "reroll":
                raise
            continue
        if choice == "ignore" or script["motion_preview_mode"] or picture.any():
            return picture
    tried = f"{attempts} seeds from {request.seed} on" if attempts > 1 else f"seed {request.seed}"
    raise FloatingPointError(
        f"frame {request.frame}: the picture is blank or not finite with {tried} "
        f"(reroll_blank_frames: {choice})"
    )
