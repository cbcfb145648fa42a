"""Depth in the frame loop: which image's depth is estimated when, and depth maps as files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from inference.deforum.geometry import DepthEstimator, DepthPictures, Pixels, to_bytes
from inference.runtime import DrawWarning, InputError

if TYPE_CHECKING:
    from inference.deforum.loop.state import State
    from inference.deforum.schedules import Script

RANGE = "depth_range"
"""Key in the state: the nearest and farthest distance that maps have shown."""


class Depths:
    """Distances of the pixels of images, if the settings need them.

    Args:
        script: the animation.
        estimator: estimates distances; None if there is none.
        save: writes the map (h, w) of a frame.
    """

    def __init__(
        self,
        script: Script,
        estimator: DepthEstimator | None,
        save: Callable[[int, np.ndarray], None],
    ) -> None:
        self.script = script
        self.estimator = estimator
        self.save = save
        self.warps = script["animation_mode"] == "3D" and bool(script["use_depth_warping"])
        if self.warps and estimator is None and script["depth_model"].lower() != "none":
            warnings.warn(
                f"depth_algorithm: {script['depth_algorithm']} needs weights that Limner does not "
                "have; everything is at one depth. depth_model names a depth model of "
                "transformers, or cues (no model), or none",
                DrawWarning,
                stacklevel=2,
            )
        if script["save_depth_maps"] and not (self.warps and estimator):
            warnings.warn(
                "save_depth_maps: has no effect without 3D, use_depth_warping and a depth_model",
                DrawWarning,
                stacklevel=2,
            )

    def of(self, picture: Pixels, frame: int, state: State) -> np.ndarray | None:
        """Return the distances (h, w), 1 … 2, for the 3D camera; None means flat."""
        if not self.warps or self.estimator is None:
            return None
        z = self.estimator.distances(to_bytes(picture))
        if self.script["save_depth_maps"]:
            maps = DepthPictures(*state.facts.get(RANGE, ()))
            self.save(frame, maps.picture(z))
            state.facts[RANGE] = [maps.low, maps.high]
        return z

    def picture(self, picture: Pixels) -> np.ndarray:
        """Return a depth map as an image (h, w), for hybrid masks.

        Raises:
            InputError: there is no depth estimator.
        """
        if self.estimator is None:
            kind = self.script["hybrid_comp_mask_type"]
            raise InputError(
                f"hybrid_comp_mask_type: {kind} needs a depth_model (cues needs no weights)"
            )
        return DepthPictures(1.0, 2.0).picture(self.estimator.distances(to_bytes(picture)))
