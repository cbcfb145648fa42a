"""Video files: MP4 with sound and subtitles by PyAV, GIF by Pillow.

H.264 with the settings that Deforum for A1111 3.0 passes to ffmpeg: yuv420p, CRF 17, preset slow;
sound ends with the images; subtitles are a `mov_text` track. yuv420p needs even sides, so odd ones
are extended by repeating the last column or row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inference.files import write_atomically
from inference.media.pictures import image_writer
from inference.media.video_reading import pyav
from inference.runtime import InputError

MILLISECONDS = Fraction(1, 1000)
MOST_FPS = 100_000
"""Maximum denominator of a frame rate such as 23.976."""

MACROBLOCK = 16
"""Width and height of x264's macroblocks, in pixels."""

SUBTITLE_STYLE = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, \
Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, \
Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
"""Header that a subtitle encoder needs before it starts (ASS)."""


@dataclass(frozen=True)
class Mp4Options:
    """Encoding of an MP4, and what it contains besides the images."""

    crf: int = 17
    """Quality, 0 (best) … 51."""
    preset: str = "slow"
    """Preset of x264, `ultrafast` … `veryslow`."""
    sound: str | Path | None = None
    """A file whose first audio track is included, up to the end of the images."""
    subtitles: Sequence[str] = ()
    """One text for each image."""
    comment: str = ""
    """Comment in the file's metadata."""


def write_mp4(
    path: Path, pictures: Iterable[np.ndarray], fps: float, options: Mp4Options | None = None
) -> int:
    """Write a video atomically; return its number of images.

    Args:
        path: ends in `.mp4`.
        pictures: uint8 RGB (h, w, 3), of one size.
        fps: images per second.
        options: encoding, sound, subtitles and comment; the defaults if None.

    Raises:
        InputError: there are no images, or the sound cannot be read.
    """
    options = options or Mp4Options()
    counts: list[int] = []

    def write(unfinished: Path) -> None:
        with pyav().open(str(unfinished), "w", format="mp4") as container:
            if options.comment:
                container.metadata["comment"] = options.comment
            counts.append(fill(container, pictures, fps, options))

    write_atomically(path, write)
    return counts[0]


def fill(container: Any, pictures: Iterable[np.ndarray], fps: float, options: Mp4Options) -> int:
    """Write all tracks to an open container; return the number of images."""
    sound, subtitles = options.sound, options.subtitles
    rate = Fraction(fps).limit_denominator(MOST_FPS)
    video = container.add_stream("libx264", rate=rate)
    video.pix_fmt = "yuv420p"
    video.options = {"crf": str(options.crf), "preset": options.preset}
    heard = container.add_stream("aac", rate=44100, layout="stereo") if sound else None
    written = subtitle_track(container) if subtitles else None
    count = 0
    for picture in pictures:
        picture = even(picture)
        if count == 0:
            video.height, video.width = picture.shape[:2]
            if not has_whole_vectors(video.width):
                video.options |= {"x264-params": "mbtree=0"}
        frame = pyav().VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = count, 1 / rate
        container.mux(video.encode(frame))
        count += 1
    if not count:
        raise InputError("there are no frames to make a video of")
    container.mux(video.encode())
    if heard is not None and sound is not None:
        put_sound(container, heard, sound, count / rate)
    if written is not None:
        put_subtitles(container, written, subtitles[:count], rate)
    return count


def has_whole_vectors(width: int) -> bool:
    """Return whether x264's macroblock-tree rate control reads initialized memory only.

    Its vector code takes up to 16 macroblocks at once. Where a row is no multiple of that, it reads
    beyond the row, and the same frames give other bytes each time (measured with PyAV 18: 9 of 12
    files of 64 x 64 pixels differed, and all 12 of 720 x 480).
    """
    return -(-width // MACROBLOCK) % 16 == 0


def even(picture: np.ndarray) -> np.ndarray:
    """Repeat the last column and row of an image if their number is odd."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded)


def subtitle_track(container: Any) -> Any:
    """Add a subtitle track to an open container."""
    track = container.add_stream("mov_text")
    track.time_base = MILLISECONDS
    track.codec_context.subtitle_header = SUBTITLE_STYLE
    return track


def put_subtitles(container: Any, track: Any, texts: Sequence[str], rate: Fraction) -> None:
    """Write one subtitle per image; in mov_text a length precedes each text."""
    for number, text in enumerate(texts):
        data = text.encode()[: 2**16 - 1]
        packet = pyav().Packet(len(data).to_bytes(2, "big") + data)
        start, end = (int(n * 1000 / rate) for n in (number, number + 1))
        packet.stream, packet.time_base = track, MILLISECONDS
        packet.pts = packet.dts = start
        packet.duration = end - start
        container.mux(packet)


def put_sound(container: Any, track: Any, path: str | Path, seconds: Fraction) -> None:
    """Write the first audio track of a file, cut to this many seconds."""
    left = int(seconds * 44100)
    resampler = pyav().AudioResampler(format="fltp", layout="stereo", rate=44100)
    for frame in decoded_sound(path):
        for resampled in resampler.resample(frame):
            samples = resampled.to_ndarray()[:, :left]
            if left <= 0:
                break
            left -= samples.shape[1]
            cut = pyav().AudioFrame.from_ndarray(
                np.ascontiguousarray(samples), format="fltp", layout="stereo"
            )
            cut.sample_rate = 44100
            container.mux(track.encode(cut))
        if left <= 0:
            break
    container.mux(track.encode())


def decoded_sound(path: str | Path) -> Iterator[Any]:
    """Yield the decoded frames of the first audio track.

    Raises:
        InputError: the file cannot be read, or has no sound.
    """
    av = pyav()
    if not Path(path).is_file():  # FFmpeg would fetch addresses on the net
        raise InputError(f"soundtrack_path: there is no file {str(path)!r}")
    try:
        with av.open(str(path)) as source:
            if not source.streams.audio:
                raise InputError(f"soundtrack_path: {str(path)!r} has no sound in it")
            yield from source.decode(source.streams.audio[0])
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"soundtrack_path: {str(path)!r} cannot be read: {error}") from error


def has_sound(path: str | Path) -> bool:
    """Return whether a file exists, can be read and has an audio track."""
    av = pyav()
    if not Path(path).is_file():  # FFmpeg would fetch addresses on the net
        return False
    try:
        with av.open(str(path)) as source:
            return bool(source.streams.audio)
    except (av.error.FFmpegError, OSError):
        return False


def write_gif(path: Path, pictures: Iterable[np.ndarray], fps: float, comment: str = "") -> None:
    """Write an animated GIF that loops; frame times are rounded to 1/100 s without drift.

    Raises:
        InputError: there are no images.
    """
    frames = [
        Image.fromarray(picture).quantize(256, Image.Quantize.MEDIANCUT) for picture in pictures
    ]
    if not frames:
        raise InputError("there are no frames to make a GIF of")
    edges = [round(number * 100 / fps) * 10 for number in range(len(frames) + 1)]
    durations = [max(10, end - start) for start, end in itertools.pairwise(edges)]

    options = {
        "save_all": True,
        "append_images": frames[1:],
        "duration": durations,
        "loop": 0,
        "comment": comment.encode(),
    }
    write_atomically(path, image_writer(frames[0], "GIF", **options))


def video_facts(path: str | Path) -> dict[str, str]:
    """Return size, frames, fps and seconds of a video, and the comment in its metadata, if any.

    Raises:
        InputError: the file cannot be read as a video.
    """
    av = pyav()
    try:
        with av.open(str(path)) as source:
            if not source.streams.video:
                raise InputError(f"{path}: contains no images")
            video, comment = source.streams.video[0], source.metadata.get("comment")
            facts = {"size": f"{video.width}x{video.height}", "frames": str(video.frames)}
            if video.average_rate:
                facts["fps"] = f"{float(video.average_rate):g}"
            if source.duration is not None:
                facts["seconds"] = f"{source.duration / av.time_base:g}"
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a video: {error}") from error
    return facts | ({"comment": comment} if comment else {})


def read_pictures(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield image files, one at a time, as uint8 RGB (h, w, 3)."""
    for path in paths:
        with Image.open(path) as image:
            yield np.asarray(image.convert("RGB"))


def iter_frames(
    path: str | Path, key: str, keep: Callable[[int], bool] = lambda number: True
) -> Iterator[np.ndarray]:
    """Yield the images of a video (or GIF) whose number `keep` accepts, uint8 RGB (h, w, 3).

    Raises:
        InputError: the file is missing or cannot be read; `key` is its key in the settings.
    """
    av = pyav()
    if not Path(path).is_file():
        raise InputError(f"{key}: there is no file {str(path)!r}; give the path of a video")
    try:
        with av.open(str(path)) as source:
            if not source.streams.video:
                raise InputError(f"{key}: {str(path)!r} contains no images")
            for number, frame in enumerate(source.decode(source.streams.video[0])):
                if keep(number):
                    yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise InputError(f"{key}: {str(path)!r} cannot be read as a video: {error}") from error
