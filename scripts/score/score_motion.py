"""Recognise the motion of a clip by optical flow.

    python -m scripts.score.score_motion runs/picto_motion/clips/val
    python -m scripts.score.score_motion --draw seen [--model picto-motion] [--artifact FILE]
    python -m scripts.score.score_motion --draw circling [--artifact FILE]

Labels the clips of a folder with metadata.jsonl, or 32 generated clips, and prints the confusion
matrix with the motions in their captions. `motion_of` labels one clip; `report` any clips in
memory. The captions are those of datasets/circling_test, with the base model's own motions in turn
for `seen`.

Flow is Farneback's (2003, "Two-frame motion estimation based on polynomial expansion") between
neighbouring frames, of the foreground's outline: pixels that differ from the colour of the clip's
border. Rotations are estimated from the content inside. It flickers in generated clips, and local
flow follows the flicker; so of all constant rates, the one is chosen at which the frames, rotated
back, agree best.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from inference.runtime import output
from scripts.picto.clip_turning import Array, centre, covered, foreground, turn_of
from scripts.picto.picto_motions import HELD_OUT, MOTIONS

UNCLEAR = "unclear"
SILHOUETTE, SOFTENED = 200.0, 2.5
"""Height (0 … 255) and softness (pixels) of the outlines whose motion is measured."""
LEAST_SEEN = 16.0
"""Minimum foreground pixels of a frame for its centre to be used."""
ENLARGED = 2
"""Factor by which frames are enlarged for the flow."""
STILL_BELOW = 3.0
"""Maximum path of the foreground of a still clip, in pixels of a 64-pixel image."""
TREMBLING = 16.0
"""What noise may add to the path of a thing that does not move."""
TRAVEL = 9.0
"""Minimum distance of a moving thing from its first to its last position, in 64ths of the image."""
BOUNCE = 6.0
"""Minimum height between two turning points, in 64ths of the image."""
CIRCLE = 14.0
"""Minimum width and height of a circle; smaller ones come from spinning asymmetric things."""
TURN, SCALE = 0.4, 0.3
"""Minimum total rotation (radians) and minimum total change of size (natural logarithm): a quarter
of those of the motions."""
LOPSIDED = np.radians(45)
"""The outline of an asymmetric thing that rotates by this much moves on an arc, which is not
travel."""
ROUND = np.radians(240)
"""Minimum total rotation of the direction of travel; smoothing shortens the ends."""


@dataclass(frozen=True)
class Motion:
    """The motion of a clip: the label, and the measurements it is based on.

    Lengths are in 64ths of the image's width.
    """

    label: str
    """A key of `MOTIONS` or `HELD_OUT`, or "unclear"."""
    amount: float
    """Mean path length of the foreground over the whole clip."""
    travel: tuple[float, float]
    """From the first to the last position, to the right and down."""
    turn: float
    """Total rotation about the foreground's own centre, radians, clockwise; half a turn at most."""
    scale: float
    """Natural logarithm of the total change in size."""
    reversals: int
    """Vertical turning points."""
    heading_turn: float
    """Total rotation of the direction of travel, radians, clockwise; 0 unless it is steady."""
    opposed: float
    """Fraction of the frames in which parts move left and right at once."""


# ----------------------------------------------------------------------------------------- flow


def silhouette(away: Array) -> Array:
    """Return the foreground's outline, softened, 0 … SILHOUETTE, to measure paths and sizes."""
    import cv2

    return cv2.GaussianBlur(covered(away) * SILHOUETTE, (0, 0), SOFTENED)


def flows(frames: Array) -> Iterator[tuple[Array, Array]]:
    """Yield for neighbouring frames foreground weights (h, w), 0 … 1, and flow (h, w, 2), pixels.

    The flow is that of the foreground's outline: the motion of its centre, plus the remaining
    motion after compensating it, so that fast things are found too.
    """
    import cv2

    size = tuple(side * ENLARGED for side in frames.shape[2:0:-1])
    away = foreground(frames)
    enlarged = [
        cv2.resize(silhouette(frame), size, interpolation=cv2.INTER_CUBIC) for frame in away
    ]
    masks = [covered(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)) for frame in away]
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    centres = [centre(mask, x, y) for mask in masks]
    pictures = [np.clip(frame, 0, 255).astype(np.uint8) for frame in enlarged]
    for i, (before, after) in enumerate(pairwise(pictures)):
        both_seen = min(masks[i].sum(), masks[i + 1].sum()) >= LEAST_SEEN
        dx, dy = centres[i + 1] - centres[i] if both_seen else (0.0, 0.0)
        back = np.array([[1, 0, -dx], [0, 1, -dy]])
        held = cv2.warpAffine(after, back, size, flags=cv2.INTER_LINEAR)
        rest = np.zeros((*before.shape, 2), np.float32)
        found = cv2.calcOpticalFlowFarneback(before, held, rest, 0.5, 3, 15, 4, 7, 1.5, 0)
        found = found + np.array([dx, dy], np.float32)
        yield masks[i], found


@dataclass(frozen=True)
class Step:
    """The foreground's motion between two frames; lengths in 64ths of the width."""

    way: Array  # mean (x, y)
    length: float  # mean length
    scale: float  # logarithm
    opposed: bool


def step(weights: Array, flow: Array) -> Step:
    """Fit a similarity to the flow, about the foreground's centre, by least squares.

    The size comes from the whole: the chords of a pure rotation point inwards.
    """
    unit = 64 / weights.shape[1]
    total = weights.sum()
    if total < 1:
        return Step(np.zeros(2), 0.0, 0.0, False)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]].astype(np.float32)
    mean = (weights[..., None] * flow).sum(axis=(0, 1)) / total
    x, y = (a - c for a, c in zip((x, y), centre(weights, x, y), strict=True))
    u, v = flow[..., 0], flow[..., 1]
    radius = (weights * (x * x + y * y)).sum() + 1e-6
    curl = (weights * (x * (v - mean[1]) - y * (u - mean[0]))).sum() / radius
    divergence = (weights * (x * (u - mean[0]) + y * (v - mean[1]))).sum() / radius
    similar = complex(1 + divergence, curl)  # factor of the frame
    length = (weights * np.hypot(u, v)).sum() / total
    shares = [(weights * (side * u * unit > 0.4)).sum() / total for side in (-1, 1)]
    level = (weights * np.abs(v)).sum() < 0.4 * (weights * np.abs(u)).sum()
    opposed = bool(min(shares) > 0.15 and level)
    scale = float(np.log(max(abs(similar), 1e-3)))
    return Step(mean * unit, float(length * unit), scale, opposed)


# -------------------------------------------------------------------------------------- figures


def turning_points(places: Array, least: float) -> int:
    """Return how often a coordinate turns back by at least `least`."""
    count, sign, extreme = 0, 0, places[0]
    for place in places[1:]:
        if sign == 0 and abs(place - extreme) >= least:
            sign, extreme = int(np.sign(place - extreme)), place
        elif sign and (place - extreme) * sign > 0:
            extreme = place
        elif sign and (extreme - place) * sign >= least:
            count, sign, extreme = count + 1, -sign, place
    return count


def heading_turn(ways: Array) -> float:
    """Return how far the direction of travel rotates in radians, if nearly all in one sense."""
    smooth = (ways[:-2] + ways[1:-1] + ways[2:]) / 3 if len(ways) > 4 else ways
    speed = np.hypot(*smooth.T)
    moving = smooth[speed > max(0.3, 0.25 * float(np.median(speed)))]
    if len(moving) < 4:
        return 0.0
    angles = np.arctan2(moving[:, 1], moving[:, 0])
    changes = (np.diff(angles) + np.pi) % (2 * np.pi) - np.pi
    total = float(changes.sum())
    steady = abs(total) > 0.8 * np.abs(changes).sum() and np.abs(changes).max() < np.radians(120)
    return total if steady else 0.0


def label_of(motion: Motion, places: Array) -> str:
    """Return the label for the measurements and the positions (f, 2)."""
    wide, high = np.ptp(places, axis=0)
    x, y = motion.travel
    if motion.amount < STILL_BELOW:
        return "still"
    if motion.opposed > 0.4 and abs(x) < 0.5 * motion.amount:
        return "crossing"
    going_round = abs(motion.heading_turn) >= ROUND and abs(motion.turn) < np.pi
    if going_round and min(wide, high) >= CIRCLE:
        return "circling"
    if motion.reversals >= 2 and high > 1.5 * wide and abs(y) < 0.6 * high:
        return "bouncing"
    travel = max(abs(x), abs(y))
    lopsided = abs(motion.turn) >= LOPSIDED and travel < 2 * TRAVEL
    if travel >= TRAVEL and np.hypot(x, y) > 0.6 * motion.amount and not lopsided:
        across, along = ("left", "right"), ("up", "down")
        return across[x > 0] if abs(x) > abs(y) else along[y > 0]
    turn, scale = abs(motion.turn) / TURN, abs(motion.scale) / SCALE
    if max(turn, scale) < 1:
        trembles = motion.amount < TREMBLING and max(wide, high) < BOUNCE
        return "still" if trembles else UNCLEAR
    if turn > scale:
        return "clockwise" if motion.turn > 0 else "counterclockwise"
    return "growing" if motion.scale > 0 else "shrinking"


def motion_of(frames: Array) -> Motion:
    """Return the motion of a clip with a plain background: uint8 (f, h, w, 3), at least two frames.

    Raises:
        ValueError: another shape or type.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 2 or frames.dtype != np.uint8:
        raise ValueError(f"a clip is uint8 (f >= 2, h, w, 3), not {frames.dtype} {frames.shape}")
    steps = [step(weights, flow) for weights, flow in flows(frames)]
    ways = np.stack([one.way for one in steps])
    places = np.concatenate([np.zeros((1, 2)), ways.cumsum(axis=0)])
    figures = Motion(
        label=UNCLEAR,
        amount=sum(one.length for one in steps),
        travel=(float(places[-1, 0]), float(places[-1, 1])),
        turn=turn_of(frames),
        scale=sum(one.scale for one in steps),
        reversals=turning_points(places[:, 1], BOUNCE),
        heading_turn=heading_turn(ways),
        opposed=float(np.mean([one.opposed for one in steps])),
    )
    return Motion(**{**vars(figures), "label": label_of(figures, places)})


# --------------------------------------------------------------------------------------- report


def asked_for(caption: str) -> str | None:
    """Return the motion in a caption of `picto-motion`, or None."""
    words = (MOTIONS | HELD_OUT).items()
    found = [key for key, text in words if re.search(rf"\b{text}\b( on a |$)", caption)]
    return found[0] if len(found) == 1 else None


def read_frames(path: Path) -> Array:
    """Return the frames of an animated image as RGB: uint8 (f, h, w, 3)."""
    with Image.open(path) as clip:
        frames = []
        for i in range(getattr(clip, "n_frames", 1)):
            clip.seek(i)
            frames.append(np.asarray(clip.convert("RGB")))
    return np.stack(frames)


def report(clips: Iterable[tuple[str, Array]]) -> float:
    """Print the motions of captioned clips against those in the captions; return the accuracy.

    Clips whose caption has no known motion are skipped.

    Raises:
        ValueError: none is left.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for caption, frames in clips:
        wanted = asked_for(caption)
        if wanted is not None:
            counts[wanted, motion_of(frames).label] += 1
    if not counts:
        raise ValueError("no caption asks for one of the motions: " + ", ".join(MOTIONS))
    for wanted in dict.fromkeys(key for key in (*MOTIONS, *HELD_OUT)):
        shown = {label: n for (asked, label), n in counts.items() if asked == wanted}
        if shown:
            others = ", ".join(f"{n} {key}" for key, n in shown.items() if key != wanted)
            output(f"{wanted:17}{shown.get(wanted, 0):4} of {sum(shown.values()):4}   {others}")
    share = sum(n for (asked, label), n in counts.items() if asked == label) / counts.total()
    output(f"{'all':17}{share:.1%} of {counts.total()}")
    return share


def prompts(kind: str) -> list[str]:
    """Return the 32 captions of datasets/circling_test, on request with one seen motion each."""
    text = Path("datasets/circling_test/prompts.txt").read_text(encoding="utf-8")
    captions = text.splitlines()
    if kind == "circling":
        return captions
    seen = [MOTIONS[key] for key in MOTIONS if key not in ("crossing", "still")]
    words = HELD_OUT["circling"]
    return [line.replace(words, seen[n % len(seen)]) for n, line in enumerate(captions)]


def drawn(options: argparse.Namespace) -> Iterator[tuple[str, Array]]:
    """Yield captions and clips generated for them, seeds 0, 1, …; also save them as files."""
    from rich.progress import track

    from inference.artifacts import load_artifact
    from inference.clips import draw_clips, expand, write_webp
    from inference.config import BaseModelConfig, ClipConfig
    from inference.models.cogvideox import load_video_model

    base = load_video_model(BaseModelConfig(path=options.model))
    if options.artifact is not None:
        load_artifact(options.artifact).attach(base, options.strength)
    options.output.mkdir(parents=True, exist_ok=True)
    captions = prompts(options.draw)
    for seed, prompt in enumerate(track(captions, "drawing clips")):
        clip = ClipConfig(
            prompt=prompt, seed=seed, steps=options.steps, cfg_scale=options.cfg_scale
        )
        (drawing,) = draw_clips(base, expand(base, [clip]))
        write_webp(options.output / f"{seed:02d}.webp", drawing.frames, 8.0, drawing.infotext)
        yield prompt, drawing.frames


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clips", type=Path, nargs="?", help="a folder with metadata.jsonl")
    parser.add_argument("--draw", choices=("seen", "circling"), help="draw 32 clips")
    parser.add_argument("--model", default="picto-motion")
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("runs/score_motion"))
    options = parser.parse_args()
    if (options.clips is None) == (options.draw is None):
        parser.error("give a folder of clips, or --draw")
    if options.draw is not None:
        report(drawn(options))
        return
    lines = (options.clips / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    report((row["text"], read_frames(options.clips / row["file_name"])) for row in rows)


if __name__ == "__main__":
    main()
