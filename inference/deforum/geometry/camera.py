"""How the camera moves from one frame to the next, as the schedules say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.deforum.geometry.pixels import Pixels
from inference.deforum.geometry.warp2d import Flip, Motion2D, warp_2d
from inference.deforum.geometry.warp3d import Motion3D, warp_3d
from inference.deforum.settings import Compat

if TYPE_CHECKING:
    from inference.deforum.schedules import Script


class Camera:
    """Moves pictures as frame `f` asks for: in 2D, or in 3D over a map of depths.

    Args:
        script: the animation.
        compat: how exactly; as the animation says, unless given. The bicubic sampling of 3D is the
            animation's own in any case.
    """

    def __init__(self, script: Script, compat: Compat | None = None) -> None:
        self.script = script
        self.compat: Compat = compat or script.compat
        self.is_3d = script["animation_mode"] == "3D"
        self.border: Any = script["border"]

    def move(self, picture: Pixels, frame: int, z: np.ndarray | None = None) -> Pixels:
        """The picture of frame - 1 as frame sees it; the same kind (bytes or floats) as given.

        `z` are the depths of its places, 1 near … 2 far, for 3D; without them all are 1.
        """
        flip = self.flip(frame)
        if not self.is_3d:
            motion = self.motion_2d(frame)
            return warp_2d(picture, motion, self.border, flip, self.compat)
        return warp_3d(
            picture,
            self.motion_3d(frame),
            z,
            self.script["padding_mode"],
            self.script["sampling_mode"],
            flip,
            self.border,
            self.compat,
            self.script.compat,
        )

    def flip(self, frame: int) -> Flip | None:
        """The perspective flip, where it is on."""
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
