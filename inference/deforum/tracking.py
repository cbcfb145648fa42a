"""A mask that follows an object through a video: `{tracked}` in mask schedules.

An addition of Limner's; Deforum has no object tracking.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from inference.deforum.flow import FlowMethod, leads_back, optical_flow
from inference.deforum.pixels import Bytes, opencv, sample, to_bytes
from inference.errors import InputError

TrackMethod = Literal["MIL", "DIS Medium", "DIS Fine", "Farneback"]

SMALLEST_BOX = 4
"""Pixels a side; less gives a tracker nothing to hold on to."""


def track_mask(
    frames: Sequence[Bytes], mask: Bytes, start: int = 0, method: TrackMethod = "DIS Fine"
) -> list[Bytes]:
    """The mask at each frame, forwards and backwards from the one that it is given on.

    Optical flow follows the object's outline, while it turns and deforms; each frame's flow leads
    to the frame before, and places are followed back to the mask as it was given, so that it never
    blurs. OpenCV's tracker "MIL" (Babenko et al. 2009) moves the mask as a whole, and finds its way
    better through quick motion.

    Args:
        frames: each (h, w, 3).
        mask: (h, w), 255 on the object.
        start: the frame that the mask belongs to.
        method: a flow method, or "MIL".

    Returns:
        One (h, w) mask of 0 and 255 for each frame.

    Raises:
        InputError: the start is outside of the video, the mask is blank, too small or of another
            size.
    """
    _check(frames, mask, start)
    binary = np.where(mask >= 128, 255, 0).astype(np.uint8)
    later = _follow(frames[start:], binary, method)
    earlier = _follow(frames[start::-1], binary, method)
    return [*earlier[:0:-1], *later]


def box_mask(box: Sequence[float], width: int, height: int) -> Bytes:
    """A mask from a box.

    Args:
        box: left, top, right, bottom: pixels, or shares of the picture if none exceeds 1.
        width: of the frame.
        height: of the frame.

    Raises:
        InputError: the box has no four numbers, or no area within the frame.
    """
    if len(box) != 4:
        raise InputError(f"track_box: {list(box)} has no four numbers: left, top, right, bottom")
    scale = (width, height, width, height) if max(box) <= 1 else (1, 1, 1, 1)
    left, top, right, bottom = (round(v * s) for v, s in zip(box, scale, strict=True))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 255
    if not mask.any():
        raise InputError(
            f"track_box: {list(box)} holds nothing of a frame of {width}x{height}; give left, top, "
            "right, bottom in pixels, or in shares from 0 to 1"
        )
    return mask


def _check(frames: Sequence[Bytes], mask: Bytes, start: int) -> None:
    if not 0 <= start < len(frames):
        raise InputError(
            f"track_frame: {start} is outside of the video of {len(frames)} frames; the first is 0"
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


def _follow(frames: Sequence[Bytes], mask: Bytes, method: TrackMethod) -> list[Bytes]:
    if method == "MIL":
        return _follow_box(frames, mask)
    return _follow_flow(frames, mask, method)


def _follow_flow(frames: Sequence[Bytes], mask: Bytes, method: FlowMethod) -> list[Bytes]:
    height, width = mask.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    origin = np.stack([x, y], axis=-1)
    masks = [mask]
    for before, now in pairwise(frames):
        back = optical_flow(now, before, method)
        lost = ~leads_back(back, optical_flow(before, now, method))
        origin = sample(origin, x + back[..., 0], y + back[..., 1], "replicate")
        values = sample(mask[..., None], origin[..., 0], origin[..., 1], "replicate")[..., 0]
        masks.append(_settled(values, lost, masks[-1]))
    return masks


def _settled(values: np.ndarray, lost: np.ndarray, before: Bytes) -> Bytes:
    """The mask of 0 and 255; uncovered ground beside the object is no part of it."""
    now = np.where((values >= 128) & ~(lost & (before == 0)), 255, 0).astype(np.uint8)
    return opencv().medianBlur(now, 3)


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
