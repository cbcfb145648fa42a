"""Frame interpolation by optical flow: smoother motion without a network.

An addition of Limner, beside Deforum's FILM and RIFE, which need weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from inference.deforum.geometry.flow import FlowMethod, optical_flow, reliability, warp_by_flow
from inference.deforum.geometry.pixels import Floats, Pixels, alike
from inference.runtime import InputError


def in_betweens(
    first: Pixels, second: Pixels, count: int, method: FlowMethod = "DIS Fine"
) -> list[Pixels]:
    """Return `count` frames, evenly spaced between two.

    Each is a blend of both neighbours, moved along their flows to its time; where the flows forth
    and back disagree (occlusion), the more reliable neighbour gets more weight.

    Args:
        first: (h, w, 3).
        second: of the same shape.
        count: 0 or more.
        method: of the optical flow.
    """
    if count < 1:
        return []
    forward, backward = optical_flow(first, second, method), optical_flow(second, first, method)
    trust = reliability(forward, backward, 1), reliability(backward, forward, 1)
    times = [k / (count + 1) for k in range(1, count + 1)]
    return [_between(first, second, (forward, backward), trust, time) for time in times]


def smooth_frames(
    frames: Iterable[Pixels], factor: int, method: FlowMethod = "DIS Fine"
) -> Iterator[Pixels]:
    """Yield all frames, with `factor` − 1 frames between two: n become (n − 1) · factor + 1.

    Raises:
        InputError: the factor is less than 1.
    """
    if factor < 1:
        raise InputError(f"frame_interpolation_x_amount: {factor} is less than 1; take 2 or more")
    before: Pixels | None = None
    for frame in frames:
        if before is not None:
            yield from in_betweens(before, frame, factor - 1, method)
        yield frame
        before = frame


def _between(
    first: Pixels,
    second: Pixels,
    flows: tuple[Floats, Floats],
    trust: tuple[Floats, Floats],
    time: float,
) -> Pixels:
    """Return the frame at `time`, 0 … 1."""
    images = [
        warp_by_flow(image.astype(np.float32), flow, share)
        for image, flow, share in zip((first, second), flows, (time, 1 - time), strict=True)
    ]
    shares = [(1 - time if i == 0 else time) * (trust[i] + 1e-3)[..., None] for i in range(2)]
    total = images[0] * shares[0] + images[1] * shares[1]
    return alike(total / (shares[0] + shares[1]), first)
