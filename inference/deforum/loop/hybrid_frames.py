"""Hybrid video in the frame loop: when the video is mixed in, and how it moves the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.deforum.geometry import (
    CompositeSettings,
    Pixels,
    check_flow_method,
    find_motion,
    hybrid_composite,
    move_like,
    optical_flow,
    reliability,
    warp_by_flow,
)
from inference.deforum.schedules import VideoFrames

if TYPE_CHECKING:
    from inference.deforum.loop.depths import Depths
    from inference.deforum.loop.state import State
    from inference.deforum.schedules import Script


class HybridVideo:
    """The input video of an animation.

    Args:
        script: the animation.
        video: its frames.
        depths: for depth masks.

    Raises:
        InputError: the flow method is not available here.
    """

    def __init__(self, script: Script, video: VideoFrames, depths: Depths) -> None:
        self.script = script
        self.video = video
        self.depths = depths
        self.init = script.init_picture() if script["hybrid_use_init_image"] else None
        self.motion: str = script["hybrid_motion"]
        if self.motion == "Optical Flow":
            check_flow_method(script["hybrid_flow_method"], "hybrid_flow_method")

    def composite(self, picture: Pixels, frame: int, when: str, before: Pixels) -> Pixels:
        """Return the image with the video's frame mixed in, if `hybrid_composite` is `when`.

        `before` is the previous frame, which masks of the type Depth use.
        """
        if self.script["hybrid_composite"] != when:
            return picture
        settings = self.settings(frame)
        video = self.video[frame] if self.init is None else self.init
        shown = {"Depth": before, "Video Depth": video}.get(settings.mask_type)
        depth = None if shown is None else self.depths.picture(shown)
        return hybrid_composite(picture, video, settings, depth)

    def settings(self, frame: int) -> CompositeSettings:
        script, number = self.script, self.script.number
        name = "hybrid_comp_mask_auto_contrast_cutoff_{}_schedule"
        return CompositeSettings(
            alpha=number("hybrid_comp_alpha_schedule", frame),
            mask_type=script["hybrid_comp_mask_type"],
            mask_blend_alpha=number("hybrid_comp_mask_blend_alpha_schedule", frame),
            mask_inverse=script["hybrid_comp_mask_inverse"],
            mask_equalize=script["hybrid_comp_mask_equalize"],
            mask_contrast=number("hybrid_comp_mask_contrast_schedule", frame),
            mask_auto_contrast=script["hybrid_comp_mask_auto_contrast"],
            cutoff_low=number(name.format("low"), frame),
            cutoff_high=number(name.format("high"), frame),
        )

    def movement(self, frame: int, before: Pixels, state: State) -> np.ndarray | None:
        """Return the video's motion from frame - 1 to frame: a matrix (3, 3), or a flow (h, w, 2).

        With `hybrid_motion_use_prev_img` it is the motion from the animation's previous frame. A
        flow is kept in the state, since the next estimate starts from it.
        """
        if self.motion == "None" or frame < 1:
            return None
        script = self.script
        first = before if script["hybrid_motion_use_prev_img"] else self.video[frame - 1]
        second = self.video[frame]
        if self.motion != "Optical Flow":
            return find_motion(first, second, self.motion)  # type: ignore[arg-type]
        method = script["hybrid_flow_method"]
        flow = optical_flow(first, second, method, state.flow)
        if script["hybrid_flow_consistency"]:
            back = optical_flow(second, first, method)
            flow = flow * reliability(flow, back, script["hybrid_consistency_blur"])[..., None]
        state.flow = flow
        return flow

    def move(self, picture: Pixels, movement: np.ndarray | None, frame: int) -> Pixels:
        """Move the image like the video."""
        if movement is None:
            return picture
        compat = self.script.compat
        if self.motion != "Optical Flow":
            return move_like(picture, movement, compat)
        factor = self.script.number("hybrid_flow_factor_schedule", frame)
        return warp_by_flow(picture, movement, factor, compat)
