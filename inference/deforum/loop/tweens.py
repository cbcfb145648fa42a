"""The frames of a block: the cadence pair is moved, blended, and shown.

Deforum for A1111 3.0 (`render.py`). With flow cadence, the pair is also aligned along the optical
flow between them: at tween w the older image is moved by w of the flow, the newer one back by 1 - w
of it. (Deforum's own method sums fractions of half the flow, after losing the flow's length;
`deforum-3.0` keeps that.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.deforum.geometry import (
    Camera,
    Floats,
    Pixels,
    blend,
    carry_flow,
    check_flow_method,
    optical_flow,
    warp_by_flow,
)
from inference.deforum.pictures import grayscale
from inference.deforum.schedules import Block
from inference.deforum.settings import DEFORUM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference.deforum.loop.depths import Depths
    from inference.deforum.loop.hybrid_frames import HybridVideo
    from inference.deforum.loop.masking import FrameMasks
    from inference.deforum.loop.state import State
    from inference.deforum.schedules import Script


@dataclass
class Tweens:
    """Makes the frames between diffused frames.

    Raises:
        InputError: the flow method is not available here.
    """

    script: Script
    camera: Camera
    """Moves the pair."""
    depths: Depths
    """For 3D."""
    masks: FrameMasks
    """For `overlay_mask`."""
    hybrid: HybridVideo | None
    """The input video, if there is one."""

    def __post_init__(self) -> None:
        self.method: str = self.script["optical_flow_cadence"]
        if self.method != "None":
            check_flow_method(self.method, "optical_flow_cadence")
        self.is_deforum = self.script.compat == DEFORUM

    def pictures(self, block: Block, state: State) -> Iterator[tuple[int, Pixels]]:
        """Yield each frame of the block with its image, and advance the state.

        When a frame is yielded, `state.feedback` is its image.
        """
        flow = self.deforum_flow(block, state) if self.is_deforum else None
        for frame in block.frames:
            tween = block.tween(frame)
            has_previous = state.previous is not None and tween < 1 and self.script.cadence_blend
            moved = self.advance(frame, state, has_previous)
            if flow is not None and any(moved):
                flow = self.add_deforum_flow(flow, frame, tween, moved, state)
            picture = self.mixed(block, frame, state, has_previous)
            if has_previous or frame > block.start:
                picture = self.finished(picture, frame)
            state.feedback = picture
            yield frame, picture

    def advance(self, frame: int, state: State, has_previous: bool) -> tuple[bool, bool]:
        """Move the pair to a frame, unless it is there; return which of both were moved."""
        assert state.next is not None
        moves_previous = has_previous and frame > state.previous_index
        moves_next = frame > state.next_index
        if not moves_previous and not moves_next:
            return False, False
        z = self.depths.of(state.next, frame, state)
        movement = None
        if self.hybrid is not None and frame > 0:
            before = state.next if state.feedback is None else state.feedback
            movement = self.hybrid.movement(frame, before, state)

        def moved(picture: Pixels) -> Pixels:
            picture = self.camera.move(picture, frame, z)
            return picture if self.hybrid is None else self.hybrid.move(picture, movement, frame)

        if moves_previous:
            assert state.previous is not None
            state.previous, state.previous_index = moved(state.previous), frame
        if moves_next:
            state.next, state.next_index = moved(state.next), frame
        return moves_previous, moves_next

    def mixed(self, block: Block, frame: int, state: State, has_previous: bool) -> Pixels:
        """Return the pair, blended by the frame's weights."""
        previous, newest = state.previous, state.next
        assert newest is not None
        if not has_previous or previous is None:
            return newest
        tween = block.tween(frame)
        if self.method == "None" or self.is_deforum or self.script.strength(block.start) == 0:
            return blend(previous, newest, tween)
        flow = optical_flow(previous, newest, self.method)  # type: ignore[arg-type]
        factor = self.script.number("cadence_flow_factor_schedule", frame)
        older = warp_by_flow(previous, flow, tween * factor)
        newer = warp_by_flow(newest, flow, -(1 - tween) * factor)
        return blend(older, newer, tween)

    def deforum_flow(self, block: Block, state: State) -> Floats | None:
        """Return half the flow of the pair, by which the newer image is moved back first."""
        is_on = self.method != "None" and self.script.strength(block.start) > 0
        if not is_on or state.previous is None or state.next is None or not self.script.cadence > 1:
            return None
        whole = optical_flow(state.previous, state.next, self.method)  # type: ignore[arg-type]
        flow = whole * np.float32(0.5)
        state.next = warp_by_flow(state.next, -flow, 1, self.script.compat)
        return flow

    def add_deforum_flow(
        self, flow: Floats, frame: int, tween: float, moved: tuple[bool, bool], state: State
    ) -> Floats:
        """Move what the camera has moved by its fraction of the flow, too."""
        z = self.depths.of(state.next, frame, state) if state.next is not None else None
        carried = carry_flow(
            flow, lambda picture: self.camera.move(picture, frame, z), self.script.compat
        )
        factor = self.script.number("cadence_flow_factor_schedule", frame)
        if moved[0] and state.previous is not None:
            state.previous = warp_by_flow(state.previous, carried * tween, factor, DEFORUM)
        if moved[1] and state.next is not None:
            state.next = warp_by_flow(state.next, carried * tween, factor, DEFORUM)
        return carried

    def finished(self, picture: Pixels, frame: int) -> Pixels:
        """Convert to grey if requested, and restore the original outside the mask."""
        if self.script["color_force_grayscale"]:
            picture = grayscale(picture)
        if not self.masks.is_on:
            return picture
        return self.masks.overlay(picture, frame, self.masks.at(frame, picture))
