"""Clips from files, each written here and read back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from inference.media.video_reading import probe, read_clip, read_frames, sequence_files
from inference.runtime.errors import InputError

av: Any = pytest.importorskip("av")

LOSSLESS: dict[str, Any] = {"lossless": True}


def grays(count: int, width: int = 16, height: int = 16) -> list[np.ndarray]:
    """Frame number n has brightness 20 n; the left upper corner is white, to see how it stands."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 20 * number % 240, np.uint8)
        frame[: height // 2, : width // 2] = 255
        frames.append(frame)
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """Numbers of the frames of `grays`, read off the lower right corner."""
    return [round(float(frame[-4:, -4:].mean()) / 20) for frame in frames]


def video(
    path: Path,
    frames: Sequence[np.ndarray],
    stamps: Sequence[int] | None = None,
    codec: str = "mpeg4",
    **options: Any,
) -> Path:
    """A video of 10 frames per second, or of frames shown at so many tenths of a second."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=options.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = options.pop("gop", 12)
        stream.codec_context.time_base = Fraction(1, 10)
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pictures(folder: Path, frames: Sequence[np.ndarray], name: str = "f{}.png") -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder


def animation(path: Path, frames: Sequence[np.ndarray], duration: Any, **options: Any) -> Path:
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others, duration=duration, **options)
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.MOV", "mpeg4"),
        ("a.mkv", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx"),
        ("a.m4v", "mpeg4"),
    ],
)
def test_a_video_s_frames_come_in_order_and_nearly_as_they_were(
    tmp_path: Path, name: str, codec: str
) -> None:
    frames = grays(11, 32)
    path = video(tmp_path / name, frames, codec=codec)
    facts = probe(path)
    assert (facts.frames, facts.width, facts.height) == (11, 32, 16)
    assert facts.fps == pytest.approx(10, rel=0.01)
    assert facts.seconds == pytest.approx(1.1, rel=0.01)
    footage = read_clip(path)
    assert footage.frames.dtype == np.uint8
    assert footage.fps == facts.fps
    assert np.abs(footage.frames.astype(int) - np.stack(frames)).mean() < 8
    assert numbers(footage.frames) == list(range(11))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize(("gop", "b_frames"), [(4, 0), (4, 2), (12, 2)])
def test_single_frames_are_those_of_the_whole(
    tmp_path: Path, name: str, gop: int, b_frames: int
) -> None:
    path = video(tmp_path / name, grays(12), gop=gop, max_b_frames=b_frames)
    whole = read_clip(path).frames
    assert numbers(whole) == list(range(12))
    for asked in ([7], [11, 0, 7, 7], [9, 10, 11], [4]):
        assert np.array_equal(read_frames(path, asked), whole[asked])
    with pytest.raises(IndexError):
        read_frames(path, [12])


def test_an_index_that_is_off_makes_it_decode_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "a.mp4", grays(12), gop=4)
    facts = probe(path)
    assert facts.keys is not None
    seeks = []
    real = av.open

    def opened(*args: Any) -> Any:  # one whose index leads behind what is asked for
        container = real(*args)
        proxy = MagicMock(wraps=container)
        proxy.__enter__.return_value = proxy
        proxy.__exit__.side_effect = lambda *_: container.close()
        proxy.streams = container.streams
        proxy.seek = lambda *_, stream: (
            seeks.append(1),
            container.seek(int(facts.stamps[8]), stream=stream),
        )
        return proxy

    monkeypatch.setattr(av, "open", opened)
    assert numbers(read_frames(path, [6, 7], facts)) == [6, 7]
    assert seeks == [1]


def test_variable_rate_is_told_by_times(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mkv", grays(4), stamps=[5, 6, 9, 10])
    facts = probe(path)
    assert facts.times.tolist() == pytest.approx([0, 0.1, 0.4, 0.5])
    assert facts.fps == pytest.approx(6)
    assert numbers(read_frames(path, [2, 3])) == [2, 3]


def test_videos_stand_upright_in_square_pixels(tmp_path: Path) -> None:
    path = video(
        tmp_path / "a.mp4", grays(2, 32, 16), sample_aspect_ratio=Fraction(1, 2), bit_rate=10**7
    )
    assert (probe(path).width, probe(path).height) == (16, 16)
    wide = bytearray(video(tmp_path / "b.mp4", grays(2, 32, 16)).read_bytes())
    place = wide.index((0x40000000).to_bytes(4), wide.index(b"tkhd")) - 32  # the turning matrix
    turned = [0, 0x10000, 0, -0x10000, 0, 0, 16 << 16, 0, 0x40000000]  # clockwise by 90 degrees
    wide[place : place + 36] = b"".join(value.to_bytes(4, signed=True) for value in turned)
    (tmp_path / "b.mp4").write_bytes(wide)
    facts = probe(tmp_path / "b.mp4")
    assert (facts.width, facts.height) == (16, 32)
    (frame,) = read_frames(tmp_path / "b.mp4", [0])
    assert frame.shape == (32, 16, 3)
    assert frame[2:14, 10:].min() > 230  # the corner was on the left, and is on the right
    assert frame[:, :6].max() < 30


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", LOSSLESS),
        ("a.gif", {}),
        ("a.png", {}),
        ("b.png", {"default_image": True}),
    ],
)
def test_animated_pictures_keep_frames_and_durations(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    frames = grays(4)
    kept = frames[1:] if "default_image" in options else frames
    durations = [100, 300, 50, 150][: len(kept)]
    path = animation(tmp_path / name, frames, durations, **options)
    facts = probe(path)
    total = sum(durations) / 1000
    assert (facts.frames, facts.width, facts.height) == (len(kept), 16, 16)
    assert facts.times.tolist() == pytest.approx([0, 0.1, 0.4, 0.45][: len(kept)])
    assert facts.fps == pytest.approx(len(kept) / total)
    assert np.array_equal(read_clip(path).frames, np.stack(kept))
    assert np.array_equal(read_frames(path, [2, 0]), np.stack([kept[2], kept[0]]))


def test_a_duration_of_nothing_is_what_browsers_make_of_it(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.gif", grays(3), 0)
    assert probe(path).times.tolist() == pytest.approx([0, 0.1, 0.2])


def test_transparent_frames_lie_on_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "a.png")
    for colour in ((255, 255, 255), (1, 2, 3)):
        (frame,) = read_frames(tmp_path / "a.png", [0], background=colour)
        assert frame[0, 0].tolist() == list(colour)


def test_a_folder_is_read_in_natural_order_at_the_rate_told(tmp_path: Path) -> None:
    frames = grays(11)
    folder = pictures(tmp_path / "clip", frames)
    (folder / "notes.txt").write_text("no picture")
    assert [file.name for file in sequence_files(folder)] == [f"f{n}.png" for n in range(11)]
    facts = probe(folder)
    assert (facts.frames, facts.fps, facts.width, facts.height) == (11, 8, 16, 16)
    assert probe(folder, fps=16).seconds == pytest.approx(11 / 16)
    assert np.array_equal(read_clip(folder).frames, np.stack(frames))
    assert np.array_equal(read_frames(folder, [10, 2]), np.stack([frames[10], frames[2]]))


def test_a_picture_is_a_clip_of_one_upright_frame(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    facts = probe(tmp_path / "a.jpg")
    assert (facts.frames, facts.width, facts.height) == (1, 4, 8)
    assert read_clip(tmp_path / "a.jpg").frames.shape == (1, 8, 4, 3)


# What is wrong with files


def broken(tmp_path: Path, kind: str) -> Path:
    if kind == "text.mp4":
        (tmp_path / kind).write_text("this is no video\n" * 40)
    elif kind == "empty.mp4":
        (tmp_path / kind).write_bytes(b"")
    elif kind == "cut.mp4":  # the index in front, and half of the frames
        path = video(tmp_path / kind, grays(12, 64, 64), container={"movflags": "faststart"}, gop=1)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "headless.mp4":  # the index behind, and cut off with the rest
        path = video(tmp_path / kind, grays(12, 64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind in {"cut.webp", "cut.gif"}:
        noise = list(np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8))
        path = animation(tmp_path / kind, noise, 100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "sizes":
        folder = pictures(tmp_path / kind, grays(2))
        Image.new("RGB", (8, 4)).save(folder / "f2.png")
    elif kind == "empty":
        (tmp_path / kind).mkdir()
    elif kind == "sound.mkv":
        with av.open(str(tmp_path / kind), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = np.zeros((1, 800), np.int16)
            frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
    return tmp_path / kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text.mp4", "text.mp4: cannot be read as a video: Invalid data .*; repair it"),
        ("empty.mp4", "empty.mp4: cannot be read as a video: Invalid data"),
        ("cut.mp4", r"cut.mp4: .*cut off.* after \d frames|cut.mp4: cut off: it ends after"),
        (
            "headless.mp4",  # by how much x264 has written, FFmpeg finds some of it or nothing
            r"headless.mp4: (contains no images \(or was cut off\); replace"
            "|cannot be read as a video: Invalid data)",
        ),
        ("cut.webp", "cut.webp: cannot be read as an image or an animation: .*; repair or remove"),
        ("cut.gif", "cut.gif: cannot be read as an image or an animation"),
        ("sizes", "f2.png: 8x4, while f0.png is 16x16: the images of a clip must have one size"),
        ("empty", "empty: no pictures in this folder"),
        ("sound.mkv", "sound.mkv: contains no images"),
        ("missing.mp4", "missing.mp4: there is no such file"),
        ("missing.gif", "missing.gif: there is no such file"),
    ],
)
def test_what_is_wrong_is_one_message_that_names_the_file(
    tmp_path: Path, kind: str, message: str
) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(InputError, match=message) as error:
        probe(path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_frame_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", grays(8, 64, 64), gop=1)
    facts = probe(path)
    short = video(tmp_path / "b.mp4", grays(6, 64, 64), gop=1)
    short.replace(path)
    with pytest.raises(
        InputError, match=r"a\.mp4: frame 7 of 8 cannot be decoded; repair the file"
    ):
        read_frames(path, [2, 6, 7], facts)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "a.mp4", grays(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"need PyAV.*pip install 'limner\[video\]'"):
        probe(path)
    assert probe(animation(tmp_path / "a.gif", grays(2), 100)).frames == 2
