"""How steady an animation is: warp error, and drift of brightness, contrast and sharpness.

The warp error is that of Lai et al. 2018 (arXiv 1808.00449, equation 11): how far a frame is from
the one before, moved as the camera (or, where that is not known, the optical flow) says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.deforum.geometry.flow import (
    FlowMethod,
    leads_back,
    motion_edges,
    optical_flow,
    warp_by_flow,
)
from inference.deforum.geometry.pixels import Pixels, opencv
from inference.deforum.geometry.warp2d import Matrix, source_places
from inference.deforum.geometry.warp3d import Motion3D, projected_motion

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """What drifts, of one frame in levels 0 … 255.

    Attributes:
        mean: of all values.
        deviation: their standard deviation.
        sharpness: variance of the Laplacian of the luminosity.
    """

    mean: float
    deviation: float
    sharpness: float


@dataclass(frozen=True)
class Temporal:
    """The figures of a run.

    Attributes:
        frames: how many were measured.
        warp_error: mean of the pairs' squared difference, values in 0 … 1; None without a pair.
        first: the look of frame 0.
        last: the look of the last frame.
        largest_drift: the largest distance from frame 0 of any frame, of each figure.
    """

    frames: int
    warp_error: float | None
    first: Look
    last: Look
    largest_drift: Look

    def summary(self) -> str:
        """One line for the log."""
        error = "none" if self.warp_error is None else f"{self.warp_error:.6f}"
        parts = [
            f"{name} {getattr(self.first, name):.2f} -> {getattr(self.last, name):.2f} "
            f"(at most {getattr(self.largest_drift, name):.2f} off)"
            for name in ("mean", "deviation", "sharpness")
        ]
        return f"{self.frames} frames: warp error {error}; {'; '.join(parts)}"


class TemporalMeter:
    """Measures an animation frame by frame, in constant memory."""

    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._errors: list[float] = []

    def add(
        self, frame: Pixels, expected: Pixels | None = None, visible: Mask | None = None
    ) -> None:
        """Takes in the next frame.

        Args:
            frame: (h, w, 3).
            expected: the frame before, moved to this one; None where the two do not belong
                together, as at the first.
            visible: (h, w), where `expected` shows what the frame before showed; all without it.
        """
        self._looks.append(look(frame))
        if expected is not None:
            error = warp_error(frame, expected, visible)
            if error is not None:
                self._errors.append(error)

    def figures(self) -> Temporal:
        """What has been measured; at least one frame is needed."""
        values = np.array([[of.mean, of.deviation, of.sharpness] for of in self._looks])
        drift = np.abs(values - values[0]).max(axis=0)
        return Temporal(
            frames=len(values),
            warp_error=float(np.mean(self._errors)) if self._errors else None,
            first=self._looks[0],
            last=self._looks[-1],
            largest_drift=Look(*(float(value) for value in drift)),
        )


def look(frame: Pixels) -> Look:
    """Mean, deviation and sharpness of a frame (h, w, 3)."""
    cv2 = opencv()
    values = frame.astype(np.float32)
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    sharpness = cv2.Laplacian(grey, cv2.CV_32F).var(dtype=np.float64)
    return Look(
        float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)), float(sharpness)
    )


def warp_error(frame: Pixels, expected: Pixels, visible: Mask | None = None) -> float | None:
    """Mean squared difference of values in 0 … 1, where visible; None where nothing is."""
    squared = np.square((frame.astype(np.float64) - expected) / 255).mean(axis=-1)
    if visible is None:
        return float(squared.mean())
    return float(squared[visible].mean()) if visible.any() else None


def expected_by_flow(
    before: Pixels, frame: Pixels, method: FlowMethod = "DIS Fine"
) -> tuple[Pixels, Mask]:
    """The frame before, moved by the flow found between the two, and where it can be trusted.

    The flow is taken from `frame` back to `before`, so that nothing is guessed where it lands.
    """
    back = optical_flow(frame, before, method)
    forward = optical_flow(before, frame, method)
    height, width = back.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = _inside(x + back[..., 0], y + back[..., 1], width, height)
    return warp_by_flow(before, -back), inside & leads_back(back, forward) & ~motion_edges(back)


def visible_2d(matrix: Matrix, width: int, height: int) -> Mask:
    """Where `warp_by_matrix` shows the picture and not what lies beyond its edge, (h, w)."""
    return _inside(*source_places(matrix, width, height), width, height)


def visible_3d(
    motion: Motion3D, width: int, height: int, z: NDArray[np.floating] | None = None
) -> Mask:
    """The same of `warp_3d`, (h, w)."""
    offset = projected_motion(motion, width, height, z)
    y, x = np.mgrid[:height, :width]
    return _inside(x - offset[..., 0] * width / 2, y - offset[..., 1] * height / 2, width, height)


def _inside(x: NDArray[np.floating], y: NDArray[np.floating], width: int, height: int) -> Mask:
    slack = 1e-3  # pixels: whole shifts are not quite whole in floats
    columns = (x >= -slack) & (x <= width - 1 + slack)
    return columns & (y >= -slack) & (y <= height - 1 + slack)
