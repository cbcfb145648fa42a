"""Which frames are diffused, and which ones between them are only moved and blended.

Deforum for A1111 3.0 (`render.py`): frame k of the block that begins at the diffused frame d is
previous x (1 - tween) + next x tween, where next is the image diffused at d, previous the one
before it, both moved by the camera up to k, and tween = (k - d + 1) / length of the block. So a
diffused image fades in and is fully visible at the end of its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DISTRIBUTIONS = ("Off", "Keyframes Only", "Additive", "Redistributed")
"""Values of `keyframe_distribution` (github.com/Tok/sd-forge-deforum)."""


@dataclass(frozen=True)
class Block:
    """A diffused frame and the frames up to the next one."""

    start: int
    """The diffused frame."""
    end: int
    """One after its last frame."""
    length: int
    """Length in frames, up to where the next diffused frame is, or would be."""

    @property
    def frames(self) -> range:
        return range(self.start, self.end)

    def tween(self, frame: int) -> float:
        """Return the weight of the block's own image, above 0 … 1."""
        return (frame - self.start + 1) / self.length


def diffused_frames(
    max_frames: int,
    cadence: int,
    keyframes: Sequence[int] = (),
    distribution: str = "Off",
) -> list[int]:
    """Return the frames that the model generates, ascending, from 0.

    Args:
        max_frames: of the animation.
        cadence: every n-th frame is diffused; 1 is all.
        keyframes: where prompts change; used unless `distribution` is Off.
        distribution: Off takes every n-th frame; Keyframes Only takes the keyframes, and the last
            frame; Additive takes both; Redistributed takes as many as Off, each replaced by its
            nearest keyframe if that is nearer than half the cadence.
    """
    regular = list(range(0, max_frames, max(1, cadence)))
    known = sorted({frame for frame in keyframes if 0 < frame < max_frames})
    match distribution:
        case "Keyframes Only":
            return sorted({0, *known, max_frames - 1})
        case "Additive":
            return sorted({*regular, *known})
        case "Redistributed":
            return redistributed(regular, known, cadence)
    return regular


def redistributed(regular: Sequence[int], keyframes: Sequence[int], cadence: int) -> list[int]:
    """Replace the regular frame nearest to each keyframe by it; 0 stays."""
    frames = list(regular)
    for keyframe in keyframes:
        place = min(range(len(frames)), key=lambda n: (abs(regular[n] - keyframe), n))
        is_near = abs(regular[place] - keyframe) * 2 <= cadence
        if place and is_near:
            frames[place] = keyframe
        elif keyframe not in frames:
            frames.append(keyframe)
    return sorted(set(frames))


def blocks(diffused: Sequence[int], max_frames: int, cadence: int, drops_last: bool) -> list[Block]:
    """Return the blocks of an animation, in order; together they contain every frame once.

    Args:
        diffused: from `diffused_frames`.
        max_frames: of the animation.
        cadence: the length of the last block, if the end did not cut it.
        drops_last: omit the last block, as Deforum for A1111 3.0 does when the cadence is above 1
            (120 frames at 2 give 118).
    """
    ends = [*diffused[1:], max_frames]
    made = [Block(start, end, end - start) for start, end in zip(diffused, ends, strict=True)]
    last = made[-1]
    made[-1] = Block(last.start, last.end, max(cadence, last.length))
    if drops_last and cadence > 1:
        made[-1] = Block(last.start, last.start, last.length)
    return made
