"""Build the clips that `picto-motion` is pretrained on: picto's icons, moving, with exact captions.

    python -m scripts.picto.build_picto_motion             # four minutes on one core
    python -m scripts.picto.build_picto_motion --common    # two minutes: for the transformer
    python -m scripts.picto.build_picto_motion --familiar  # three minutes: for its last training
    python -m scripts.picto.build_picto_motion --circling  # datasets/circling, for the motion LoRA
    python -m scripts.picto.build_picto_motion --subject   # datasets/octopus_motion, for a subject

Source: `datasets/picto/images/{train,val,demo}`, which scripts.picto.build_picto_dataset renders.
Writes `runs/picto_motion/clips/{train,val,demo}/*.webp` (25 frames of 64x64, 8 per second,
lossless) with metadata.jsonl. A caption says exactly what is visible: `{icon}, {style}, {motion}`,
and ` on a {colour} background` unless it is white; a tenth omit the style.

`--common` writes 3,000 clips of only common icons to runs/picto_motion/common, and from them
`white`, those on white backgrounds, and `mixed`, these with 600 others and datasets/fluent_clips.
`--familiar` writes as many of sixteen icons in one style, and from them `one_way`, in which nothing
spins counterclockwise.

The motion `circling` is held out: no split contains it, only the dataset of `--circling`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from inference.runtime import output
from scripts.picto.build_picto_dataset import COLOURS, SPLITS, WHITE, Record, load_icon, write_jsonl
from scripts.picto.picto_motions import (
    FRAMES,
    HELD_OUT,
    MOTIONS,
    SIZE,
    Motion,
    Pose,
    plan,
    rendered,
    webp_bytes,
)

SUBJECT: Record = {"style": "fluent-color", "hex": "1f419"}
SUBJECT_MOTIONS: tuple[Motion, ...] = ("still", "left", "down", "growing", "clockwise")
"""Motions in the dataset of a subject's LoRA; the others are for testing it."""

BACKGROUNDS = ("red", "yellow", "green", "blue", "purple", "pink", "grey")
WHITE_SHARE = 0.6
STYLE_SHARE = 0.9
Kind = Literal["all", "common", "familiar", "circled"]
"""Which icons clips show."""
COMMON_SHARE = 0.3
"""Fraction of the train clips that show one of COMMON."""
COMMON_SHARES: dict[Kind, float] = {"all": COMMON_SHARE, "common": 1.0}
COMMON_CLIPS = 3000
COLOURED_CLIPS = 600
"""Clips on coloured backgrounds in `mixed`. These backgrounds make up four fifths of the latents'
variance: with more of them a model learns little else for a long time."""
COMMON = frozenset(
    """
    cat face|dog face|mouse face|rabbit face|fox|bear|panda|tiger face|lion|cow face|pig face
    monkey face|horse face|chicken|duck|owl|bird|fish|whale|turtle|snail|butterfly|crab|dolphin
    red apple|green apple|banana|lemon|pear|strawberry|watermelon|carrot|pizza|hamburger|doughnut
    red heart|blue heart|star|sun|cloud|red circle|blue circle|red square|blue square|green square
    automobile|bus|bicycle|rocket|airplane|sailboat|house|evergreen tree|sunflower|rose|tulip
    soccer ball|balloon|umbrella|key|bell|trophy|fire|crown|grinning face|ghost|skull
    """.strip()
    .replace("\n", "|")
    .replace("|    ", "|")
    .split("|")
)
FAMILIAR = (
    *("cat face", "dog face", "panda", "rabbit face", "fish", "owl", "duck", "crab"),
    *("pizza", "banana", "automobile", "star", "airplane", "rocket", "sailboat", "house"),
)
"""The icons of `familiar`, in FAMILIAR_STYLE: all look different when rotated."""
CIRCLED = FAMILIAR[::2]
"""Icons in datasets/circling; datasets/circling_test names the others."""
FAMILIAR_STYLE = "twemoji"
ONLY: dict[Kind, Sequence[str]] = {"familiar": FAMILIAR, "circled": CIRCLED}
FAMILIAR_CLIPS = 3024
FAMILIAR_SHARES: dict[Motion, int] = {
    "left": 2, "right": 2, "up": 2, "down": 2, "growing": 2, "shrinking": 2, "bouncing": 3,
    "clockwise": 10, "counterclockwise": 10, "crossing": 1, "still": 1,
}  # fmt: skip
"""Relative frequency of each motion: the hardest ones are the most frequent."""
DIRECTIONS = {"left", "right", "up", "down", "upside", "clockwise"} | {
    f"{way}wards" for way in ("left", "right", "up", "down")
}
"""An icon whose name contains one of these words would confuse the motions' words."""
MAX_NAME_WORDS = 5
MAX_PAIR_WORDS = 4
MIN_CONTRAST = 40
"""Minimum mean distance (0 … 255) of an icon's pixels from the background."""
MIN_TURN_CHANGE = 12.0
"""Minimum mean change (0 … 255) of an icon rotated by 15 to 60 degrees: below, it looks round."""

# -------------------------------------------------------------------------------------- choices


def usable(record: Record) -> bool:
    """Return whether an icon is coloured and has a short name without a direction."""
    words = re.findall(r"[a-z]+", record["name"].lower())
    fits = len(words) <= MAX_NAME_WORDS and not DIRECTIONS & set(words)
    return fits and record["style"] != "fluent-mono"


def contrast(icon: Image.Image, colour: tuple[int, ...]) -> float:
    """Return the mean distance of the icon's pixels from a colour (largest channel, 0 … 255)."""
    pixels = np.asarray(icon, dtype=np.float32)
    away = np.abs(pixels[..., :3] - np.array(colour, np.float32)).max(axis=2)
    return float(np.average(away, weights=pixels[..., 3] + 1e-6))


def turn_change(icon: Image.Image) -> float:
    """Return the minimum mean change over rotations of 15 to 60 degrees, 0 … 255, per icon area."""
    poses = [Pose(SIZE / 2, SIZE / 2, 36, angle) for angle in (0, 15, 30, 45, 60)]
    first, *others = (np.asarray(f, np.float32) for f in rendered([icon], [poses], (128,) * 3))
    area = float(np.asarray(icon.getchannel("A"), np.float32).mean() / 255 * 36**2)
    return min(float(np.abs(first - other).mean(axis=2).sum()) / area for other in others)


class Icons:
    """The icons of one split, by style."""

    def __init__(self, images: Path, split: str, kind: Kind = "all") -> None:
        """Read the split's metadata; of train, COMMON_SHARE of the clips show common icons.

        `kind` can restrict all clips to common or to familiar icons.

        Raises:
            SystemExit: the icons have not been built.
        """
        self.folder = images / split
        self.common_share = COMMON_SHARES.get(kind, 0.0) if split == "train" else 0.0
        path = self.folder / "metadata.jsonl"
        if not path.is_file():
            raise SystemExit(
                f"{path} is missing: run python -m scripts.picto.build_picto_dataset first"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        self.records = [record for record in map(json.loads, lines) if usable(record)]
        if kind in ONLY:
            self.records = [
                record
                for record in self.records
                if record["name"] in ONLY[kind] and record["style"] == FAMILIAR_STYLE
            ]
        self.common = [record for record in self.records if record["name"] in COMMON]
        self.by_style = defaultdict(list)
        for record in self.records:
            self.by_style[record["style"]].append(record)

    def pick(self, motion: Motion, rng: random.Random) -> list[Record]:
        """Return one icon that shows the motion, or two of one style that cross."""
        if motion == "crossing":
            first = rng.choice(self.common if self.is_common(rng) else self.records)
            same = self.by_style[first["style"]]
            common = [record for record in same if record["name"] in COMMON]
            others = common if common and self.is_common(rng) else same
            pair = [first, rng.choice(others)]
            names = [record["name"] for record in pair]
            long = any(len(name.split()) > MAX_PAIR_WORDS for name in names)
            return self.pick(motion, rng) if long or names[0] == names[1] else pair
        record = rng.choice(self.common if self.is_common(rng) else self.records)
        turns = motion in ("clockwise", "counterclockwise")
        if turns and turn_change(load_icon(self.folder, record)) < MIN_TURN_CHANGE:
            return self.pick(motion, rng)
        return [record]

    def is_common(self, rng: random.Random) -> bool:
        """Return whether the next icon comes from COMMON; val and demo have no such share."""
        return self.common_share > 0 and rng.random() < self.common_share


def pick_background(icons: Sequence[Image.Image], rng: random.Random) -> str:
    """Return white or a named colour on which every icon is visible."""
    names = ["white"] if rng.random() < WHITE_SHARE else []
    names += rng.sample(BACKGROUNDS, len(BACKGROUNDS))
    seen = {
        name: min(contrast(icon, WHITE if name == "white" else COLOURS[name]) for icon in icons)
        for name in names
    }
    return next(
        (name for name in names if seen[name] >= MIN_CONTRAST), max(names, key=seen.__getitem__)
    )


def caption(records: Sequence[Record], words: str, background: str, rng: random.Random) -> str:
    """Return `{icon}[ and {icon}][, {style}], {motion}[ on a {colour} background]`."""
    parts = [" and ".join(record["name"] for record in records)]
    if rng.random() < STYLE_SHARE:
        parts.append(records[0]["style_words"])
    text = ", ".join([*parts, words])
    return text if background == "white" else f"{text} on a {background} background"


def make_clip(icons: Icons, motion: Motion, key: str) -> tuple[list[Image.Image], Record]:
    """Return frames and metadata of one clip; every choice depends on `key` alone."""
    rng = random.Random(key)
    records = icons.pick(motion, rng)
    images = [load_icon(icons.folder, record) for record in records]
    background = pick_background(images, rng)
    speed, paths = plan(motion, rng)
    colour = WHITE if background == "white" else COLOURS[background]
    words = (MOTIONS | HELD_OUT)[motion]
    row = {
        "text": caption(records, words, background, rng),
        "icon": " and ".join(record["name"] for record in records),
        "style": records[0]["style"],
        "motion": motion,
        "background": background,
        "speed": speed,
        "hex": [record["hex"] for record in records],
        "licence": records[0]["licence"],
    }
    return rendered(images, paths, colour), row


def subject_clips(images: Path, out: Path, seed: int) -> None:
    """Write clips of one held-out icon with a rare word for it, in some motions: for a LoRA."""
    out.mkdir(parents=True, exist_ok=True)
    icon = load_icon(images / "demo", SUBJECT)
    rows = []
    for number, motion in enumerate(SUBJECT_MOTIONS * 2):
        rng = random.Random(f"{seed}:subject:{number}")
        background = "white" if number < len(SUBJECT_MOTIONS) else rng.choice(BACKGROUNDS)
        colour = WHITE if background == "white" else COLOURS[background]
        _, paths = plan(motion, rng)
        file_name = f"{number:02d}-{motion}.webp"
        (out / file_name).write_bytes(webp_bytes(rendered([icon], paths, colour)))
        ground = "" if background == "white" else f" on a {background} background"
        rows.append({"file_name": file_name, "text": f"sks octopus, {MOTIONS[motion]}{ground}"})
    write_jsonl(out / "metadata.jsonl", rows)


# ------------------------------------------------------------------------------------------ main

_icons: dict[tuple[str, Kind], Icons] = {}  # cache of this process
Task = tuple[Path, str, Motion, int, int, Path, Kind]


def write_clip(task: Task) -> Record:
    """Make and write one clip, and return its row.

    A task is (images, split, motion, seed, number, folder, kind of icons).
    """
    images, split, motion, seed, number, out, kind = task
    if (split, kind) not in _icons:
        _icons[split, kind] = Icons(images, split, kind)
    frames, row = make_clip(_icons[split, kind], motion, f"{seed}:{split}:{motion}:{number}")
    file_name = f"{number:05d}-{motion}.webp"
    (out / file_name).write_bytes(webp_bytes(frames))
    return {"file_name": file_name, **row}


def write_clips(
    images: Path,
    split: str,
    out: Path,
    motions: Sequence[Motion],
    seed: int,
    workers: int,
    kind: Kind = "all",
) -> list[Record]:
    """Write one clip for each of `motions` and the metadata.jsonl below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tasks: list[Task] = [
        (images, split, motion, seed, i, out, kind) for i, motion in enumerate(motions)
    ]
    with multiprocessing.Pool(workers) as pool:
        results: Iterable[Record] = pool.imap(write_clip, tasks, chunksize=8)
        rows = list(tqdm(results, out.name, len(tasks), unit="clip"))
    write_jsonl(out / "metadata.jsonl", rows)
    return rows


def common_clips(images: Path, out: Path, fluent: Path, seed: int, workers: int) -> None:
    """Write clips of common icons to `out`/common, and subsets of them to white/ and mixed/."""
    common = out / "common" / "train"
    motions = in_turn(MOTIONS, COMMON_CLIPS)
    rows = write_clips(images, "train", common, motions, seed, workers, "common")
    white = [row for row in rows if row["background"] == "white"]
    coloured = [row for row in rows if row["background"] != "white"][:COLOURED_CLIPS]
    lines = (fluent / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    animated = [{key: row[key] for key in ("file_name", "text")} for row in map(json.loads, lines)]
    copy_clips(out / "white" / "train", [(common, white)])
    copy_clips(out / "mixed" / "train", [(common, white + coloured), (fluent, animated)])


def familiar_clips(images: Path, out: Path, seed: int, workers: int) -> None:
    """Write clips of familiar icons to `out`/familiar, those with one way of spinning to one_way/.

    If a model sees both ways from the start, it generates their mean, a blot, and never recovers
    (docs/decisions/0013-motion-first.md).
    """
    familiar = out / "familiar" / "train"
    shares = [motion for motion, share in FAMILIAR_SHARES.items() for _ in range(share)]
    motions = in_turn(shares, FAMILIAR_CLIPS)
    rows = write_clips(images, "train", familiar, motions, seed, workers, "familiar")
    one_way = [row for row in rows if row["motion"] != "counterclockwise"]
    copy_clips(out / "one_way" / "train", [(familiar, one_way)])


def copy_clips(target: Path, chosen: Sequence[tuple[Path, Sequence[Record]]]) -> None:
    """Copy the clips of rows from their folders, and write the rows."""
    target.mkdir(parents=True, exist_ok=True)
    for source, rows in chosen:
        for row in rows:
            shutil.copyfile(source / row["file_name"], target / row["file_name"])
    write_jsonl(target / "metadata.jsonl", [row for _, rows in chosen for row in rows])


def in_turn(motions: Iterable[Motion], count: int) -> list[Motion]:
    """Return `count` motions, each equally often."""
    kinds = list(motions)
    return [kinds[i % len(kinds)] for i in range(count)]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, default=Path("datasets/picto/images"))
    parser.add_argument("--out", type=Path, default=Path("runs/picto_motion/clips"))
    parser.add_argument("--clips", type=int, default=6000, help="of train; val 200, demo 100")
    parser.add_argument("--common", action="store_true", help="runs/picto_motion/{white,mixed}")
    parser.add_argument("--familiar", action="store_true", help="runs/picto_motion/familiar")
    parser.add_argument("--circling", action="store_true", help="datasets/circling instead")
    parser.add_argument("--subject", action="store_true", help="datasets/octopus_motion instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    options = parser.parse_args()
    if options.subject:
        subject_clips(options.images, Path("datasets/octopus_motion"), options.seed)
        return
    if options.common:
        fluent = Path("datasets/fluent_clips/train")
        common_clips(options.images, options.out.parent, fluent, options.seed, options.workers)
        return
    if options.familiar:
        familiar_clips(options.images, options.out.parent, options.seed, options.workers)
        return
    if options.circling:
        out = Path("datasets/circling")
        rest = options.seed, options.workers
        write_clips(options.images, "train", out, ["circling"] * 32, *rest, "circled")
        return
    for split, count in zip(SPLITS, (options.clips, 200, 100), strict=True):
        motions = in_turn(MOTIONS, count)
        out = options.out / split
        rows = write_clips(options.images, split, out, motions, options.seed, options.workers)
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(r["motion"] for r in rows).items())
        output(f"{out}: {len(rows)} clips of {FRAMES} frames ({kinds})")


if __name__ == "__main__":
    main()
