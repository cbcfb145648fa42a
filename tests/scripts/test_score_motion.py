"""The motion that is read off a clip is the one it was rendered with."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from scripts.picto import picto_motions as motions
from scripts.score import score_motion

pytest.importorskip("cv2")
KINDS = (*motions.MOTIONS, *motions.HELD_OUT)


def icon(colour: tuple[int, int, int]) -> Image.Image:
    """A face with one ear."""
    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 14, 56, 62), fill=(*colour, 255))
    draw.polygon([(8, 2), (30, 16), (10, 36)], fill=(90, 50, 30, 255))
    draw.rectangle((20, 32, 26, 38), fill=(20, 20, 30, 255))
    draw.rectangle((38, 32, 44, 38), fill=(20, 20, 30, 255))
    return image


def clip(kind: str, spoiled: bool = False) -> np.ndarray:
    """A rendered clip, uint8 (25, 64, 64, 3); spoiled by blur and noise as a drawn one is."""
    _, paths = motions.plan(kind, random.Random(kind))
    icons = [icon((230, 170, 50)), icon((60, 110, 220))][: len(paths)]
    frames = motions.rendered(icons, paths, (170, 210, 245))
    if not spoiled:
        return np.stack([np.asarray(frame) for frame in frames])
    soft = np.stack([np.asarray(frame.filter(ImageFilter.GaussianBlur(1.2))) for frame in frames])
    noise = np.random.default_rng(0).normal(0, 8, soft.shape)
    return np.clip(soft + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("spoiled", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_motion_is_told(kind: str, spoiled: bool) -> None:
    assert score_motion.motion_of(clip(kind, spoiled)).label == kind


def test_figures_have_their_units() -> None:
    grown = score_motion.motion_of(clip("growing"))
    assert grown.scale == pytest.approx(np.log(3), abs=0.3)
    assert grown.turn == pytest.approx(0, abs=0.3)  # what grows agrees with itself nowhere
    turned = score_motion.motion_of(clip("counterclockwise"))
    assert turned.turn == pytest.approx(-np.pi / 2, abs=0.1)
    assert turned.scale == pytest.approx(0, abs=0.3)  # the chords of a turn are not a shrinking
    moved = score_motion.motion_of(clip("right"))
    assert moved.travel == pytest.approx((32, 0), abs=5)
    assert score_motion.motion_of(clip("right")[::-1]).label == "left"
    assert score_motion.motion_of(clip("circling")[::-1]).heading_turn < 0


def test_a_thing_that_leaves_in_a_zigzag_is_unclear() -> None:
    steps = [0, 4, 8, 4, 0, -4, -8, -4] * 3 + [0]  # to and fro: no motion that captions ask for
    poses = [motions.Pose(32 + x, 32, 30) for x in steps]
    frames = motions.rendered([icon((230, 170, 50))], [poses], (255, 255, 255))
    assert score_motion.motion_of(np.stack([np.asarray(f) for f in frames])).label == "unclear"


def test_an_empty_clip_stands_still() -> None:
    assert score_motion.motion_of(np.full((5, 64, 64, 3), 200, np.uint8)).label == "still"


@pytest.mark.parametrize("bad", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((9, 3, 8, 8))])
def test_what_is_no_clip_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a clip is uint8"):
        score_motion.motion_of(bad)


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("cat face, twemoji style, moving left", "left"),
        ("cat face, spinning counterclockwise on a blue background", "counterclockwise"),
        ("fox and key, noto style, crossing on a red background", "crossing"),
        ("growing heart, noto style, circling", "circling"),
        ("growing heart, noto style", None),
    ],
)
def test_captions_ask_for_motions(caption: str, wanted: str | None) -> None:
    assert score_motion.asked_for(caption) == wanted


def test_report_counts_what_agrees(capsys) -> None:
    wrong = [("fox, moving left", clip("right")), ("fox, moving up", clip("up"))]
    assert score_motion.report([*wrong, ("fox", clip("up"))]) == 0.5
    assert "1 right" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no caption asks"):
        score_motion.report([("fox", clip("up"))])
