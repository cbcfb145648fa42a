"""Video files: what other programs find in them."""

import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from inference.deforum.loop.generator import SeededGenerator
from inference.media.video_writing import (
    Mp4Options,
    decoded_sound,
    has_sound,
    iter_frames,
    write_gif,
    write_mp4,
)
from inference.runtime.errors import InputError

FAST = Mp4Options(preset="ultrafast")


@pytest.fixture
def tone(tmp_path):
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes((np.sin(np.arange(66150) / 10) * 8000).astype("<i2").tobytes())
    return path


def greys(count, height=64, width=64):
    return [np.full((height, width, 3), 20 * n, np.uint8) for n in range(count)]


def test_video_has_its_pictures_sound_and_subtitles(tmp_path, tone):
    texts = [f"F#: {n}; Seed: {n}" for n in range(12)]
    path = tmp_path / "a.mp4"
    assert write_mp4(path, greys(12), 15, replace(FAST, sound=tone, subtitles=texts)) == 12
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.frames, video.average_rate, video.codec_context.name) == (12, 15, "h264")
        assert (video.width, video.height, video.pix_fmt) == (64, 64, "yuv420p")
        assert audio.codec_context.name == "aac"
        assert audio.duration and audio.time_base
        assert float(audio.duration * audio.time_base) == pytest.approx(0.8, abs=0.05)
        track = file.streams.subtitles[0]
        assert track.codec_context.name == "mov_text"
        read = [bytes(packet)[2:].decode() for packet in file.demux(track) if packet.size > 2]
    assert read == texts
    levels = [frame.mean() for frame in iter_frames(path, "key")]
    assert levels == pytest.approx([20 * n for n in range(12)], abs=2)


@pytest.mark.parametrize(("height", "width"), [(63, 65), (64, 33), (8, 8)])
def test_odd_sizes_get_one_more_row_or_column(tmp_path, height, width):
    write_mp4(tmp_path / "a.mp4", greys(3, height, width), 23.976, FAST)
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.height, stream.width) == (height + height % 2, width + width % 2)
        assert stream.frames == 3
        assert stream.average_rate
        assert float(stream.average_rate) == pytest.approx(23.976)


def test_gif_does_not_drift(tmp_path):
    write_gif(tmp_path / "a.gif", greys(12), 15)
    with Image.open(tmp_path / "a.gif") as image:
        frames = sum(1 for _ in ImageSequence.Iterator(image))
        assert (frames, image.size, image.info["loop"]) == (12, (64, 64), 0)
        total = 0
        for number in range(12):
            image.seek(number)
            total += image.info["duration"]
    assert total == 800


def test_bad_files_are_named(tmp_path, tone):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"video_init_path: .*broken.mp4.* cannot be read"):
        list(iter_frames(tmp_path / "broken.mp4", "video_init_path"))
    with pytest.raises(InputError, match="contains no images"):
        list(iter_frames(tone, "key"))
    with pytest.raises(InputError, match="no frames"):
        write_mp4(tmp_path / "none.mp4", [], 15)
    assert not (tmp_path / "none.mp4").exists()


def test_run_writes_all_that_is_asked_for(animate, tmp_path, tone, recwarn):
    animate(
        SeededGenerator(),
        max_frames=4,
        skip_video_creation=False,
        make_gif=True,
        add_soundtrack="File",
        soundtrack_path=str(tone),
        diffusion_cadence=2,
        zoom="0:(1), 3:(1.06)",
        r_upscale_video=True,
        r_upscale_keep_imgs=False,
        frame_interpolation_engine="FILM",
        frame_interpolation_x_amount=3,
        fps=12,
        save_depth_maps=True,
        animation_mode="3D",
        depth_model="cues",
        recipe={"subtitles": True, "contact_sheet": True},
    )
    run = animate.last.run
    names = {path.name.removeprefix(run.timestring) for path in run.path.iterdir()}
    assert {
        ".mp4", ".gif", ".srt", "_sheet.png", "_settings.txt", "_Upscaled_x2.mp4", "_flow_x3.mp4",
        "_000000003.png", "_depth_000000003.png",
    } <= names  # fmt: skip
    assert "_upscaled" not in names
    assert any("FILM needs weights" in str(one.message) for one in recwarn)
    srt = run.file(".srt").read_text("utf-8").splitlines()
    assert srt[1] == "00:00:00,000 --> 00:00:00,083"
    assert srt[2].startswith("F#: 0; Cadence: false; Seed: 10; ")
    assert srt[6].startswith("F#: 1; Cadence: true; Seed: 10; ")
    sizes = {}
    for name in (".mp4", "_Upscaled_x2.mp4", "_flow_x3.mp4"):
        with av.open(str(run.file(name))) as file:
            stream = file.streams.video[0]
            assert stream.average_rate
            sizes[name] = stream.width, stream.frames, float(stream.average_rate)
            assert file.streams.audio
    assert sizes == {
        ".mp4": (64, 4, 12.0), "_Upscaled_x2.mp4": (128, 4, 12.0), "_flow_x3.mp4": (64, 10, 36.0)
    }  # fmt: skip


def test_sound_is_never_fetched(monkeypatch):
    def fetched(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr("av.open", fetched)
    address = "https://deforum.github.io/a1/A1.mp3"
    assert not has_sound(address)
    with pytest.raises(InputError, match="there is no file"):
        next(decoded_sound(address))


def test_sound_is_looked_at_before_frame_0(animate, tmp_path):
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match="soundtrack_path"):
        animate(
            skip_video_creation=False,
            add_soundtrack="File",
            soundtrack_path=str(tmp_path / "no.wav"),
        )


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    """x264's defaults read memory that nobody has written, unless rows are long and even."""
    width, rng = 336, np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    large = np.asarray(coarse.resize((2 * width, 128), Image.Resampling.BICUBIC))
    frames = [large[n // 2 : n // 2 + 64, n : n + width].copy() for n in range(24)]
    sizes = [int(2**power) for power in rng.uniform(5, 19, 400)]

    def frames_among_used_memory() -> Iterator[np.ndarray]:
        for frame in frames:
            used = [bytearray([int(rng.integers(1, 256))]) * size for size in sizes]
            del used
            yield frame

    contents = set()
    for number in range(3):
        write_mp4(tmp_path / f"{number}.mp4", frames_among_used_memory(), 8)
        contents.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(contents) == 1
