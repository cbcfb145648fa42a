"""The clips that `picto-motion` learns from move as their captions say."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from scripts.picto import build_picto_motion as build
from scripts.picto import picto_motions as motions
from scripts.picto.build_picto_dataset import WHITE, image_name


def icon() -> Image.Image:
    """A blue bar with one red end, opaque, neither round nor symmetric."""
    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 24, 60, 40), fill=(30, 60, 200, 255))
    draw.rectangle((44, 24, 60, 40), fill=(220, 30, 30, 255))
    return image


def frames(name: str, seed: int) -> np.ndarray:
    """Frames of a motion on white, as darkness: (frames, height, width, 3), 0 … 1."""
    _, paths = motions.plan(name, random.Random(seed))
    clip = motions.rendered([icon()] * len(paths), paths, WHITE)
    assert len(clip) == 25
    return 1 - np.stack([np.asarray(frame, dtype=np.float64) for frame in clip]) / 255


def centroids(ink: np.ndarray) -> np.ndarray:
    """The centre (x, y) in pixels of each frame's ink: (frames, 2)."""
    ink = ink.sum(axis=3) if ink.ndim == 4 else ink
    y, x = np.mgrid[:64, :64] + 0.5
    return np.stack([(ink * x).sum((1, 2)), (ink * y).sum((1, 2))], 1) / ink.sum((1, 2))[:, None]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "way"),
    [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))],
)
def test_moving_goes_where_it_says(name: str, way: tuple[int, int], seed: int) -> None:
    path = centroids(frames(name, seed))
    along, aside = path @ np.array(way), path @ np.array(way[::-1])
    assert (np.diff(along) > 0).all()
    assert 27 < along[-1] - along[0] < 37
    assert np.ptp(aside) < 0.3


@pytest.mark.parametrize(("name", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_spinning_is_a_quarter_turn_the_way_it_says(name: str, sign: int) -> None:
    ink = frames(name, 0)
    ends = centroids(np.clip(ink[..., 1] - ink[..., 0], 0, 1))  # red
    angles = np.unwrap(np.arctan2(*(ends - centroids(ink)).T[::-1]))  # y is down: + is clockwise
    assert np.diff(angles) * sign == pytest.approx(np.full(len(ink) - 1, np.pi / 48), abs=0.02)
    assert angles[-1] - angles[0] == pytest.approx(sign * np.pi / 2, abs=0.02)


@pytest.mark.parametrize(("name", "sign"), [("growing", 1), ("shrinking", -1)])
def test_scaling_changes_the_side_threefold(name: str, sign: int) -> None:
    ink = frames(name, 0).sum(axis=(1, 2, 3))
    assert (np.diff(ink) * sign > 0).all()
    assert (ink[-1] / ink[0]) ** (sign / 2) == pytest.approx(3, rel=0.05)
    assert np.ptp(centroids(frames(name, 0)), axis=0).max() < 0.5


def test_bouncing_leaves_the_ground_twice() -> None:
    height = -centroids(frames("bouncing", 0))[:, 1]
    turns = np.flatnonzero(np.diff(np.sign(np.diff(height)))) + 1
    assert turns.tolist() == [6, 12, 18]
    assert height[6] - height[0] > 20
    assert height[[0, 12, 24]] == pytest.approx(height[0])


def test_still_stands_and_keeps_all_its_frames(tmp_path) -> None:
    ink = frames("still", 0)
    assert (ink == ink[0]).all()
    picture = Image.fromarray(np.uint8(255 * (1 - ink[0])))
    with Image.open(io.BytesIO(motions.webp_bytes([picture] * 25))) as clip:
        assert getattr(clip, "n_frames", 1) == 25


def test_crossing_icons_change_sides() -> None:
    _, (first, second) = motions.plan("crossing", random.Random(0))
    assert first[0].x < 16 < 48 < first[-1].x
    assert second[-1].x < 16 < 48 < second[0].x


def test_circling_is_one_round_clockwise_and_held_out() -> None:
    turned = np.unwrap(np.arctan2(*(centroids(frames("circling", 0)) - 32).T[::-1]))
    assert turned[-1] - turned[0] == pytest.approx(2 * np.pi, abs=1e-6)
    assert (np.diff(turned) > 0).all()
    assert "circling" not in motions.MOTIONS


@pytest.fixture
def icons(tmp_path) -> build.Icons:
    folder = tmp_path / "train"
    folder.mkdir()
    names = ["red bar", "key", "page facing left"]
    rows = [
        {
            "name": name,
            "style": style,
            "style_words": f"{style} style",
            "hex": str(i),
            "licence": "MIT",
        }
        for i, name in enumerate(names)
        for style in ("noto", "twemoji")
    ]
    for row in rows:
        icon().save(folder / image_name(row))
    build.write_jsonl(folder / "metadata.jsonl", rows)
    return build.Icons(tmp_path, "train")


def test_a_clip_depends_on_its_key_alone(icons: build.Icons) -> None:
    first, again, other = (build.make_clip(icons, "left", key) for key in ("a", "a", "b"))
    assert motions.webp_bytes(first[0]) == motions.webp_bytes(again[0])
    assert first[1] == again[1]
    assert motions.webp_bytes(first[0]) != motions.webp_bytes(other[0])


def test_a_clip_comes_back_as_it_was_rendered(icons: build.Icons) -> None:
    clip, _ = build.make_clip(icons, "crossing", "a")
    with Image.open(io.BytesIO(motions.webp_bytes(clip))) as opened:
        for i, frame in enumerate(clip):
            opened.seek(i)
            assert opened.convert("RGB").tobytes() == frame.tobytes()
            assert opened.info["duration"] == 125


def test_captions_name_what_is_seen(icons: build.Icons) -> None:
    rows = [build.make_clip(icons, "crossing", str(i))[1] for i in range(40)]
    for row in rows:
        assert set(row["icon"].split(" and ")) == {"red bar", "key"}  # no icon names a direction
        style = f", {row['style']} style" if "style" in row["text"] else ""
        ground = row["background"]
        suffix = "" if ground == "white" else f" on a {ground} background"
        assert row["text"] == f"{row['icon']}{style}, crossing{suffix}"
    assert 15 <= sum(row["background"] == "white" for row in rows) <= 33
    assert 1 <= sum("style" not in row["text"] for row in rows) <= 10


def test_familiar_icons_are_of_one_style_and_half_of_them_circle(tmp_path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    rows = [
        {
            "name": name,
            "style": style,
            "style_words": f"{style} style",
            "hex": "0",
            "licence": "MIT",
        }
        for name in ("cat face", "dog face", "bear")
        for style in ("twemoji", "noto")
    ]
    build.write_jsonl(folder / "metadata.jsonl", rows)

    def shown(kind: build.Kind) -> set[tuple[str, str]]:
        icons = build.Icons(tmp_path, "train", kind)
        picked = (icons.pick("left", random.Random(i))[0] for i in range(99))
        return {(one["name"], one["style"]) for one in picked}

    assert len(shown("all")) == 6
    assert shown("familiar") == {("cat face", "twemoji"), ("dog face", "twemoji")}
    assert shown("circled") == {("cat face", "twemoji")}
    asked = Path("datasets/circling_test/prompts.txt").read_text(encoding="utf-8").splitlines()
    assert {line.partition(",")[0] for line in asked} == set(build.FAMILIAR) - set(build.CIRCLED)
