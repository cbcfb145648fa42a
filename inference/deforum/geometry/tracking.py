"""A mask that follows an object through a video: `{tracked}` in mask schedules.

An addition of Limner; Deforum has no object tracking.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from inference.deforum.geometry.pixels import Bytes, opencv, to_bytes
from inference.runtime import InputError

TrackMethod = Literal["Optical Flow", "MIL"]

MOST_POINTS = 200
"""Maximum number of points of the object that are tracked."""

LEAST_POINTS = 4
"""Minimum number of points; with fewer, the mask does not move."""

TOLERANCE = 0.5
"""Maximum error of a tracked point in pixels."""

SMALLEST_BOX = 4
"""Minimum side in pixels; a tracker cannot follow anything smaller."""


def track_mask(
    frames: Sequence[Bytes], mask: Bytes, start: int = 0, method: TrackMethod = "Optical Flow"
) -> list[Bytes]:
    """Track the mask from its frame, forwards and backwards, and return one for each frame.

    Optical flow of the object's corners (Lucas and Kanade 1981, in pyramids) gives its shift,
    rotation and scale from frame to frame; the given mask is moved by their product, so that it
    never blurs. OpenCV's tracker "MIL" (Babenko et al. 2009) only shifts the mask, and copes better
    with fast motion.

    Args:
        frames: each (h, w, 3).
        mask: (h, w), 255 on the object.
        start: the frame that the mask belongs to.
        method: see above.

    Returns:
        One (h, w) mask of 0 and 255 for each frame.

    Raises:
        InputError: the start is outside the video, or the mask is blank, too small or of another
            size.
    """
    _check(frames, mask, start)
    binary = np.where(mask >= 128, 255, 0).astype(np.uint8)
    follow = _follow_box if method == "MIL" else _follow_flow
    later, earlier = follow(frames[start:], binary), follow(frames[start::-1], binary)
    return [*earlier[:0:-1], *later]


def box_mask(box: Sequence[float], width: int, height: int) -> Bytes:
    """Return a mask of a box.

    Args:
        box: left, top, right, bottom: pixels, or fractions of the image if none exceeds 1.
        width: of the frame.
        height: of the frame.

    Raises:
        InputError: the box does not have four numbers, or has no area within the frame.
    """
    if len(box) != 4:
        raise InputError(
            f"tracked_box: {list(box)} does not have four numbers: left, top, right, bottom"
        )
    scale = (width, height, width, height) if max(box) <= 1 else (1, 1, 1, 1)
    left, top, right, bottom = (round(v * s) for v, s in zip(box, scale, strict=True))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 255
    if not mask.any():
        raise InputError(
            f"tracked_box: the box from ({left}, {top}) to ({right}, {bottom}) holds nothing of a "
            f"frame of {width}x{height}; give pixels, or shares of the frame from 0 to 1"
        )
    return mask


def _check(frames: Sequence[Bytes], mask: Bytes, start: int) -> None:
    if not 0 <= start < len(frames):
        raise InputError(
            f"tracked_frame: {start} is outside the video of {len(frames)} frames, from 0 on"
        )
    if mask.shape != frames[start].shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, frames[start].shape)]
        raise InputError(f"tracked mask: its size {sizes[0]} differs from the video's {sizes[1]}")
    left, top, width, height = opencv().boundingRect(np.where(mask >= 128, 255, 0).astype(np.uint8))
    if min(width, height) < SMALLEST_BOX:
        raise InputError(
            f"tracked mask: {width}x{height} pixels at ({left}, {top}) are too few to follow; mark "
            f"at least {SMALLEST_BOX}x{SMALLEST_BOX}"
        )


def _follow_flow(frames: Sequence[Bytes], mask: Bytes) -> list[Bytes]:
    cv2 = opencv()
    greys = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    origin = np.eye(3)
    masks = [mask]
    for before, now in pairwise(greys):
        origin = origin @ _way_back(before, now, masks[-1])
        moved = cv2.warpPerspective(mask, origin, mask.shape[::-1], flags=flags)
        masks.append(np.where(moved >= 128, 255, 0).astype(np.uint8))
    return masks


def _way_back(before: Bytes, now: Bytes, mask: Bytes) -> np.ndarray:
    """Return the object's motion to the previous frame: (3, 3), shift, rotation, scale in pixels.

    Points within the mask are tracked forwards and back again; RANSAC uses those that return to
    their start. No motion if too few are left.
    """
    cv2 = opencv()
    inside = cv2.erode(mask, np.ones((3, 3), np.uint8))
    here = cv2.goodFeaturesToTrack(before, MOST_POINTS, 0.01, 2, mask=inside, blockSize=3)
    if here is None:
        return np.eye(3)
    side = _window(mask)
    there, _, _ = cv2.calcOpticalFlowPyrLK(before, now, here, None, winSize=side, maxLevel=3)
    home, _, _ = cv2.calcOpticalFlowPyrLK(now, before, there, None, winSize=side, maxLevel=3)
    good = np.abs(home - here).max(axis=(1, 2)) < TOLERANCE
    if good.sum() < LEAST_POINTS:
        return np.eye(3)
    cv2.setRNGSeed(0)
    found, _ = cv2.estimateAffinePartial2D(there[good], here[good], ransacReprojThreshold=TOLERANCE)
    return np.eye(3) if found is None else np.vstack([found, [0, 0, 1]])


def _window(mask: Bytes) -> tuple[int, int]:
    """Return the tracking window: a third of the object, odd, so that it has little background."""
    _, _, width, height = opencv().boundingRect(mask)
    side = int(np.clip(min(width, height) // 3, 7, 21)) | 1
    return side, side


def _follow_box(frames: Sequence[Bytes], mask: Bytes) -> list[Bytes]:
    cv2 = opencv()
    cv2.setRNGSeed(0)
    first = cv2.boundingRect(mask)
    tracker = cv2.TrackerMIL_create()
    tracker.init(np.ascontiguousarray(frames[0]), first)
    masks = [mask]
    for frame in frames[1:]:
        found, box = tracker.update(np.ascontiguousarray(frame))
        masks.append(_shifted(mask, box[0] - first[0], box[1] - first[1]) if found else masks[-1])
    return masks


def _shifted(mask: Bytes, right: float, down: float) -> Bytes:
    height, width = mask.shape
    y, x = np.mgrid[:height, :width]
    columns, rows = x - round(right), y - round(down)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    moved = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return to_bytes(np.where(inside, moved, 0))
