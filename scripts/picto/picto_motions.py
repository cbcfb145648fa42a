"""The motions of `picto-motion`: icon positions in each frame, rendered, and written as WebP."""

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

SIZE = 64  # pixels
FRAMES = 25
FPS = 8
MOTIONS = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "clockwise": "spinning clockwise",
    "counterclockwise": "spinning counterclockwise",
    "growing": "growing",
    "shrinking": "shrinking",
    "bouncing": "bouncing",
    "crossing": "crossing",
    "still": "standing still",
}
"""The base model's motions -> their words. Every split holds equally many of each."""
HELD_OUT = {"circling": "circling"}
Motion = str


@dataclass(frozen=True)
class Pose:
    """Position of an icon in one frame: centre and side in pixels, angle in degrees."""

    x: float
    y: float
    side: float
    angle: float = 0.0
    """Clockwise."""


# -------------------------------------------------------------------------------------- motions


def pace(rng: random.Random) -> tuple[str, list[float]]:
    """Return the fraction of the motion that is done in each frame, 0 … 1: constant or eased."""
    even = [i / (FRAMES - 1) for i in range(FRAMES)]
    if rng.random() < 0.5:
        return "constant", even
    return "eased", [t * t * (3 - 2 * t) for t in even]


def moving(dx: int, dy: int, done: Sequence[float], rng: random.Random) -> list[Pose]:
    """Move through the middle, by 28 pixels or as far as the image allows."""
    side = rng.uniform(28, 36)
    travel = rng.uniform(28, max(28, SIZE - side))
    aside = rng.uniform(-5, 5)
    poses = []
    for t in done:
        along = travel * (t - 0.5)
        poses.append(
            Pose(
                SIZE / 2 + dx * along + abs(dy) * aside,
                SIZE / 2 + dy * along + abs(dx) * aside,
                side,
            )
        )
    return poses


def in_place(rng: random.Random, room: float = 4) -> tuple[float, float]:
    """Return a centre near the image's."""
    return SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room)


def spinning(sign: int, rng: random.Random) -> list[Pose]:
    """Rotate by a quarter turn at a constant rate, large and in the middle; `sign` 1 is clockwise.

    Four frames share a latent frame: a whole turn would be 60 degrees in each, and more if eased.
    Only details show that a round thing rotates, and at random positions a model learns no details
    for a long time.
    """
    x, y = in_place(rng, 0.5)
    side = rng.uniform(43, 46)
    return [Pose(x, y, side, sign * 90 * i / (FRAMES - 1)) for i in range(FRAMES)]


def scaling(start: float, end: float, done: Sequence[float], rng: random.Random) -> list[Pose]:
    """Scale from `start` to `end` times the icon's usual side."""
    x, y = in_place(rng)
    side = rng.uniform(30, 38)
    return [Pose(x, y, side * (start + (end - start) * t)) for t in done]


def bouncing(rng: random.Random) -> list[Pose]:
    """Bounce twice from the floor, like a ball under gravity."""
    side = rng.uniform(28, 34)
    ground = SIZE - side / 2 - rng.uniform(1, 3)
    height = rng.uniform(22, SIZE - side - 4)
    x = SIZE / 2 + rng.uniform(-8, 8)
    phases = [(2 * i / (FRAMES - 1)) % 1 for i in range(FRAMES)]
    return [Pose(x, ground - height * 4 * u * (1 - u), side) for u in phases]


def crossing(done: Sequence[float], rng: random.Random) -> list[list[Pose]]:
    """Move the first icon from left to right, the second from right to left."""
    side = rng.uniform(26, 30)
    travel = SIZE - side
    apart = rng.choice((-1, 1)) * rng.uniform(7, 10)
    y = SIZE / 2 + rng.uniform(-4, 4)
    ways = ((1, y - apart), (-1, y + apart))
    return [[Pose(SIZE / 2 + d * travel * (t - 0.5), at, side) for t in done] for d, at in ways]


def circling(rng: random.Random) -> list[Pose]:
    """Move once around, clockwise at a constant rate, from the top; the icon stays upright."""
    side = rng.uniform(26, 30)
    radius = (SIZE - side) / 2 - rng.uniform(0, 1)
    angles = [2 * math.pi * i / (FRAMES - 1) for i in range(FRAMES)]
    centre = SIZE / 2
    return [
        Pose(centre + radius * math.sin(a), centre - radius * math.cos(a), side) for a in angles
    ]


def plan(motion: Motion, rng: random.Random) -> tuple[str, list[list[Pose]]]:
    """Return the pace's name, and one pose per frame for each icon of the clip.

    Raises:
        KeyError: no such motion.
    """
    name, done = pace(rng)
    if motion == "crossing":
        return name, crossing(done, rng)
    if motion == "still":
        x, y = in_place(rng, 6)
        return "constant", [[Pose(x, y, rng.uniform(28, 38))] * FRAMES]
    at_one_pace: dict[str, Callable[[random.Random], list[Pose]]] = {
        "bouncing": bouncing,
        "circling": circling,
        "clockwise": partial(spinning, 1),
        "counterclockwise": partial(spinning, -1),
    }
    if motion in at_one_pace:
        return "constant", [at_one_pace[motion](rng)]
    kinds: dict[str, Callable[[], list[Pose]]] = {
        "left": lambda: moving(-1, 0, done, rng),
        "right": lambda: moving(1, 0, done, rng),
        "up": lambda: moving(0, -1, done, rng),
        "down": lambda: moving(0, 1, done, rng),
        "growing": lambda: scaling(0.4, 1.2, done, rng),
        "shrinking": lambda: scaling(1.2, 0.4, done, rng),
    }
    return name, [kinds[motion]()]


# ------------------------------------------------------------------------------------ rendering


def placed(icon: Image.Image, pose: Pose) -> Image.Image:
    """Return the icon (RGBA) at the pose on a transparent canvas, with subpixel precision.

    It is first scaled down with Lanczos to whole pixels, since a transform alone would alias.
    """
    whole = math.ceil(pose.side)
    small = Image.new("RGBA", (whole + 4, whole + 4))
    small.paste(icon.resize((whole, whole), Image.Resampling.LANCZOS), (2, 2))
    scale = whole / pose.side
    cos, sin = (scale * f(math.radians(pose.angle)) for f in (math.cos, math.sin))
    middle = whole / 2 + 2
    matrix = (
        cos, sin, middle - cos * pose.x - sin * pose.y,
        -sin, cos, middle + sin * pose.x - cos * pose.y,
    )  # fmt: skip
    return small.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def rendered(
    icons: Sequence[Image.Image], paths: Sequence[Sequence[Pose]], colour: tuple[int, ...]
) -> list[Image.Image]:
    """Return the frames (RGB) of icons that follow their paths over a plain colour."""
    frames = []
    for poses in zip(*paths, strict=True):
        frame = Image.new("RGBA", (SIZE, SIZE), (*colour, 255))
        for icon, pose in zip(icons, poses, strict=True):
            frame.alpha_composite(placed(icon, pose))
        frames.append(frame.convert("RGB"))
    return frames


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a RIFF chunk, padded to an even length."""
    return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def webp_bytes(frames: Sequence[Image.Image], fps: int = FPS) -> bytes:
    """Return a lossless animated WebP that keeps every frame.

    Pillow's own writer merges equal neighbours into one longer frame, so a still clip would be read
    back as one frame. Layout: WebP container specification, "Animation".
    """
    width, height = (side - 1 for side in frames[0].size)
    size = width.to_bytes(3, "little") + height.to_bytes(3, "little")
    body = chunk(b"VP8X", b"\x02\0\0\0" + size) + chunk(b"ANIM", b"\xff\xff\xff\xff\0\0")
    head = bytes(6) + size + round(1000 / fps).to_bytes(3, "little") + b"\x02"
    before, image = None, b""
    for frame in frames:
        if frame.tobytes() != before:
            buffer = io.BytesIO()
            frame.save(buffer, "WEBP", lossless=True, quality=20, method=2)
            before, image = frame.tobytes(), buffer.getvalue()[12:]
        body += chunk(b"ANMF", head + image)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body
