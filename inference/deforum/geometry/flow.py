"""Optical flow: estimate and apply it (Deforum 3.0 `hybrid_video.py`, `consistency_check.py`).

A flow is (h, w, 2), float32, in pixels, x right and y down: the content at p in the first frame is
at p + flow(p) in the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from inference.deforum.geometry.pixels import Bytes, Floats, Pixels, alike, opencv, sample, to_bytes
from inference.deforum.settings import DEFORUM, FIXED, Compat
from inference.runtime import InputError

FlowMethod = Literal["DIS Medium", "DIS Fine", "Farneback", "RAFT"]

FLOW_METHODS: tuple[FlowMethod, ...] = ("DIS Medium", "DIS Fine", "Farneback")
"""Methods that are available here."""

SMALLEST_SIDE = 32
"""Pixels; smaller frames are mirrored at their edges up to this size, since DIS fails on them."""

UNRELIABLE = -0.75
"""Reliability of a pixel whose flow does not lead back; below 0, so that blurring spreads it."""


def optical_flow(
    first: Pixels, second: Pixels, method: FlowMethod = "DIS Fine", initial: Floats | None = None
) -> Floats:
    """Return the flow from the first frame to the second, of their luminosity.

    Args:
        first: (h, w, 3).
        second: of the same shape.
        method: "DIS Medium" and "DIS Fine" (Kroeger et al. 2016, arXiv 1603.03590; the latter at
            full resolution with 192 iterations), or "Farneback" (2003).
        initial: a flow that DIS starts from, such as that of the previous frames.

    Raises:
        InputError: the method is RAFT or unknown.
    """
    check_flow_method(method)
    height, width = first.shape[:2]
    grey, other = _grey(first), _grey(second)
    if method == "Farneback":
        return opencv().calcOpticalFlowFarneback(grey, other, None, 0.5, 5, 21, 5, 7, 1.2, 0)
    if initial is not None:
        initial = _padded(np.ascontiguousarray(initial, dtype=np.float32))
    found = _dis(method).calc(_padded(grey), _padded(other), initial)
    return np.ascontiguousarray(found[:height, :width])


def check_flow_method(method: str, key: str = "flow method") -> None:
    """Reject a method that is not available here.

    Args:
        method: one of Deforum's choices.
        key: the setting with this value.

    Raises:
        InputError: the method is RAFT or unknown.
    """
    if method == "RAFT":
        raise InputError(
            f'{key}: "RAFT" needs torchvision\'s weights, which Limner does not use; take '
            '"DIS Fine", or "DIS Medium" where it must be quick'
        )
    if method not in FLOW_METHODS:
        raise InputError(f'{key}: "{method}" is unknown; take one of {", ".join(FLOW_METHODS)}')


def warp_by_flow(image: Pixels, flow: Floats, factor: float = 1, compat: Compat = FIXED) -> Pixels:
    """Move the first frame along the flow: pixel p is fetched from p − factor · flow(p).

    Mirrored at the edges. A uniform flow of whole pixels moves whole pixels exactly.

    Args:
        image: (h, w, 3).
        flow: (h, w, 2).
        factor: multiplies the flow.
        compat: "deforum-3.0" rounds coordinates to 1/32 pixel (OpenCV's `remap`).
    """
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x - factor * flow[..., 0], y - factor * flow[..., 1]
    if compat == DEFORUM:
        cv2 = opencv()
        places = x.astype(np.float32), y.astype(np.float32)
        return cv2.remap(image, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return alike(sample(image, x, y, "reflect"), image)


def carry_flow(flow: Floats, warp: Callable[[Floats], Any], compat: Compat = FIXED) -> Floats:
    """Warp a flow by the camera's motion, as flow cadence does at each tween.

    Args:
        flow: (h, w, 2).
        warp: the camera's motion, for float32 images (h, w, 3).
        compat: in Deforum 3.0 the result has a length of at most one pixel.
    """
    longest = float(np.abs(flow).max())
    scale = longest if compat == DEFORUM and longest > 0 else 1.0
    carried = warp(np.dstack([flow / scale, np.zeros_like(flow[..., :1])]))[..., :2]
    return carried * np.abs(carried).max() if compat == DEFORUM else carried


def reliability(forward: Floats, backward: Floats, blur: float = 0) -> Floats:
    """Return the reliability of the forward flow, (h, w), 0 … 1, by which it is multiplied.

    Args:
        forward: from the first frame to the second.
        backward: from the second to the first.
        blur: sigma in pixels that softens the edges (`hybrid_consistency_blur`).
    """
    shares = np.where(leads_back(forward, backward), 1, UNRELIABLE).astype(np.float32)
    if blur > 0:
        shares = opencv().GaussianBlur(shares, (0, 0), blur)
    return shares.clip(0, 1)


def leads_back(forward: Floats, backward: Floats) -> np.ndarray:
    """Return whether the backward flow undoes the forward flow at each pixel, (h, w), bool.

    |f + b|² < 0.01 (|f|² + |b|²) + 0.5, with b taken at p + f(p) (Ruder et al. 2016, arXiv
    1604.08610, equation 5).
    """
    height, width = forward.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    back = sample(backward, x + forward[..., 0], y + forward[..., 1], "replicate")
    gap = np.square(forward + back).sum(axis=-1)
    lengths = np.square(forward).sum(axis=-1) + np.square(back).sum(axis=-1)
    return gap < 0.01 * lengths + 0.5


def motion_edges(flow: Floats) -> np.ndarray:
    """Return where the flow changes abruptly between pixels, (h, w), bool (equation 6 there)."""
    across = np.diff(flow, axis=1, append=flow[:, -1:])
    down = np.diff(flow, axis=0, append=flow[-1:])
    change = np.square(across).sum(axis=-1) + np.square(down).sum(axis=-1)
    return change > 0.01 * np.square(flow).sum(axis=-1) + 0.002


def _dis(method: FlowMethod) -> Any:
    cv2 = opencv()
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if method == "DIS Fine":
        finder.setFinestScale(0)
        finder.setGradientDescentIterations(192)
        finder.setPatchSize(8)
        finder.setPatchStride(4)
    return finder


def _grey(image: Pixels) -> Bytes:
    pixels = image if image.dtype == np.uint8 else to_bytes(image)
    cv2 = opencv()
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)


def _padded(values: Any) -> Any:
    missing = [max(0, SMALLEST_SIDE - side) for side in values.shape[:2]]
    if not any(missing):
        return values
    widths = [(0, missing[0]), (0, missing[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, widths, mode="symmetric")
