"""How steady an animation is: warp error, and drift of brightness, contrast and sharpness.

The warp error is that of Lai et al. 2018 (arXiv 1808.00449, equation 11): the difference between a
frame and the previous one, moved like the camera (or, if its motion is unknown, by optical flow).
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
    """Statistics of one frame that can drift, in levels 0 … 255.

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
    """The metrics of a run.

    Attributes:
        frames: number of frames measured.
        warp_error: mean of the pairs' squared difference, values in 0 … 1; None without a pair.
        first: statistics of frame 0.
        last: statistics of the last frame.
        largest_drift: largest difference of any frame from frame 0, for each statistic.
    """

    frames: int
    warp_error: float | None
    first: Look
    last: Look
    largest_drift: Look

    def summary(self) -> str:
        """Return one line for the log."""
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
        """Add the next frame.

        Args:
            frame: (h, w, 3).
            expected: the previous frame, moved to this one; None if the two are unrelated, as at
                the first.
            visible: (h, w), where `expected` shows content of the previous frame; None means
                everywhere.
        """
        self._looks.append(look(frame))
        if expected is not None:
            error = warp_error(frame, expected, visible)
            if error is not None:
                self._errors.append(error)

    def figures(self) -> Temporal:
        """Return the metrics; needs at least one frame."""
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
    """Return mean, deviation and sharpness of a frame (h, w, 3)."""
    cv2 = opencv()
    values = frame.astype(np.float32)
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    sharpness = cv2.Laplacian(grey, cv2.CV_32F).var(dtype=np.float64)
    return Look(
        float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)), float(sharpness)
    )


def warp_error(frame: Pixels, expected: Pixels, visible: Mask | None = None) -> float | None:
    """Return the mean squared difference, values in 0 … 1, where visible; None if nothing is."""
    squared = np.square((frame.astype(np.float64) - expected) / 255).mean(axis=-1)
    if visible is None:
        return float(squared.mean())
    return float(squared[visible].mean()) if visible.any() else None


def expected_by_flow(
    before: Pixels, frame: Pixels, method: FlowMethod = "DIS Fine"
) -> tuple[Pixels, Mask]:
    """Return the previous frame, moved by optical flow, and where the flow is reliable.

    The flow is computed from `frame` back to `before`, so that every target pixel has a source.
    """
    back = optical_flow(frame, before, method)
    forward = optical_flow(before, frame, method)
    height, width = back.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = _inside(x + back[..., 0], y + back[..., 1], width, height)
    return warp_by_flow(before, -back), inside & leads_back(back, forward) & ~motion_edges(back)


def visible_2d(matrix: Matrix, width: int, height: int) -> Mask:
    """Return where `warp_by_matrix` shows the image and not what is beyond its edge, (h, w)."""
    return _inside(*source_places(matrix, width, height), width, height)


def visible_3d(
    motion: Motion3D, width: int, height: int, z: NDArray[np.floating] | None = None
) -> Mask:
    """Return where `warp_3d` shows the image and not what is beyond its edge, (h, w)."""
    offset = projected_motion(motion, width, height, z)
    y, x = np.mgrid[:height, :width]
    return _inside(x - offset[..., 0] * width / 2, y - offset[..., 1] * height / 2, width, height)


def _inside(x: NDArray[np.floating], y: NDArray[np.floating], width: int, height: int) -> Mask:
    slack = 1e-3  # pixels: integer shifts are not exact in floats
    columns = (x >= -slack) & (x <= width - 1 + slack)
    return columns & (y >= -slack) & (y <= height - 1 + slack)
