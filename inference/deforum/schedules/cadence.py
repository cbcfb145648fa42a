"""Which frames are diffused, and which ones between them are only moved and blended.

Deforum for A1111 3.0 (`render.py`): frame k of the block that begins at the diffused frame d is
previous x (1 - tween) + next x tween, where next is the picture diffused at d, previous the one
before it, both moved by the camera up to k, and tween = (k - d + 1) / length of the block. So a
diffused picture comes in slowly and is there alone at the end of its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DISTRIBUTIONS = ("Off", "Keyframes Only", "Additive", "Redistributed")
"""Of `keyframe_distribution` (github.com/Tok/sd-forge-deforum)."""


@dataclass(frozen=True)
class Block:
    """A diffused frame and the frames up to the next one."""

    start: int
    """The diffused frame."""
    end: int
    """One behind the last frame that is shown of it."""
    length: int
    """In frames, up to where the next diffused frame is, or would be."""

    @property
    def frames(self) -> range:
        return range(self.start, self.end)

    def tween(self, frame: int) -> float:
        """How far the block's own picture has come in, above 0 … 1."""
        return (frame - self.start + 1) / self.length


def diffused_frames(
    max_frames: int,
    cadence: int,
    keyframes: Sequence[int] = (),
    distribution: str = "Off",
) -> list[int]:
    """The frames that are drawn by the model, rising, from 0.

    Args:
        max_frames: of the animation.
        cadence: every how many frames one is diffused; 1 is all.
        keyframes: where prompts change; heeded unless `distribution` is Off.
        distribution: Off takes every n-th frame; Keyframes Only takes the keyframes, and the last
            frame; Additive takes both; Redistributed takes as many as Off, each the keyframe
            nearest to it where that is nearer than half the cadence.
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
    """Every keyframe takes the place of the regular frame nearest to it; 0 stays."""
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
    """The blocks of an animation, in order; together they show every frame once.

    Args:
        diffused: of `diffused_frames`.
        max_frames: of the animation.
        cadence: the length of the last block, were it not cut by the end.
        drops_last: leave the last block out, as Deforum for A1111 3.0 does when the cadence is
            above 1 (120 frames at 2 give 118).
    """
    ends = [*diffused[1:], max_frames]
    made = [Block(start, end, end - start) for start, end in zip(diffused, ends, strict=True)]
    last = made[-1]
    made[-1] = Block(last.start, last.end, max(cadence, last.length))
    if drops_last and cadence > 1:
        made[-1] = Block(last.start, last.start, last.length)
    return made
