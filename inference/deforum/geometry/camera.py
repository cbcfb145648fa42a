"""Camera motion from one frame to the next, according to the schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.deforum.geometry.pixels import Pixels
from inference.deforum.geometry.warp2d import Flip, Motion2D, warp_2d
from inference.deforum.geometry.warp3d import Motion3D, Sampling3D, warp_3d
from inference.deforum.settings import Compat

if TYPE_CHECKING:
    from inference.deforum.schedules import Script


class Camera:
    """Moves images as frame `f` requires: in 2D, or in 3D over a depth map.

    Args:
        script: the animation.
        compat: which bugs are kept; the animation's unless given. The bicubic sampling of 3D is
            always the animation's.
    """

    def __init__(self, script: Script, compat: Compat | None = None) -> None:
        self.script = script
        self.compat: Compat = compat or script.compat
        self.is_3d = script["animation_mode"] == "3D"
        self.border: Any = script["border"]

    def move(self, picture: Pixels, frame: int, z: np.ndarray | None = None) -> Pixels:
        """Return the image of frame - 1 as seen from frame, of the same dtype (bytes or floats).

        `z` is the depth of each pixel for 3D, 1 near … 2 far; without it all are 1.
        """
        flip = self.flip(frame)
        if not self.is_3d:
            motion = self.motion_2d(frame)
            return warp_2d(picture, motion, self.border, flip, self.compat)
        sampling = Sampling3D(
            self.script["padding_mode"],
            self.script["sampling_mode"],
            self.border,
            self.compat,
            self.script.compat,
        )
        return warp_3d(picture, self.motion_3d(frame), z, flip, sampling)

    def flip(self, frame: int) -> Flip | None:
        """Return the perspective flip, if it is on."""
        if not self.script["enable_perspective_flip"]:
            return None
        names = "theta", "phi", "gamma", "fv"
        return Flip(*(self.script.number(f"perspective_flip_{name}", frame) for name in names))

    def motion_2d(self, frame: int) -> Motion2D:
        number = self.script.number
        return Motion2D(
            number("zoom", frame),
            number("angle", frame),
            number("translation_x", frame),
            number("translation_y", frame),
            number("transform_center_x", frame),
            number("transform_center_y", frame),
        )

    def motion_3d(self, frame: int) -> Motion3D:
        number = self.script.number
        aspect = number("aspect_ratio_schedule", frame)
        if self.script["aspect_ratio_use_old_formula"]:
            aspect = self.script.width / self.script.height
        return Motion3D(
            number("translation_x", frame),
            number("translation_y", frame),
            number("translation_z", frame),
            number("rotation_3d_x", frame),
            number("rotation_3d_y", frame),
            number("rotation_3d_z", frame),
            number("fov_schedule", frame),
            aspect,
        )
