"""Clips from files: videos, animated images, folders of images, and single images.

Videos are read with PyAV, everything else with Pillow. Frames have the timestamps of the file, so
that videos with a variable frame rate look as in a player.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from inference.runtime import InputError, require

VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
"""Suffixes of files that are read with PyAV."""
PICTURE_EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".jfif", ".jpe", ".jp2",
    ".ppm", ".qoi",
)  # fmt: skip
DEFAULT_FPS = 8.0
"""Frame rate of folders of images, which do not specify one: CogVideoX's."""
UNSAID_MILLISECONDS = 100
"""Duration of a frame whose duration is 0, as in browsers."""
PILLOW_ERRORS = (
    Image.UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    EOFError,
    IndexError,
    SyntaxError,
    ValueError,
    struct.error,
)
STAMPED_FORMATS = {"mov", "mp4", "matroska", "webm"}
"""FFmpeg's names of containers with a timestamp for each frame; AVI has none."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Footage:
    """The frames of a clip."""

    frames: np.ndarray
    """(f, h, w, 3), uint8."""
    fps: float


@dataclass(frozen=True)
class ClipFacts:
    """Metadata of a clip, before its frames are decoded."""

    frames: int
    fps: float
    """Frames per second, averaged over the whole clip."""
    width: int
    """Width of the upright image, in square pixels."""
    height: int
    stamps: np.ndarray = field(compare=False, repr=False)
    """(f,), int64, ascending: when each frame is first shown, in ticks."""
    tick: float = field(compare=False, repr=False)
    """Length of a tick in seconds."""
    keys: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Timestamps from which a video can be decoded; None if frames have no timestamps."""

    @property
    def times(self) -> np.ndarray:
        """(f,), when each frame is first shown, in seconds after the first one."""
        return (self.stamps - self.stamps[0]) * self.tick

    @property
    def seconds(self) -> float:
        """Return the length of the clip; the last frame has the average duration."""
        return float(self.times[-1]) + 1 / self.fps


def probe(path: Path, fps: float = DEFAULT_FPS) -> ClipFacts:
    """Return number, rate and size of a clip's frames.

    Of a video, only the first frame is decoded; of a folder, only the headers are read. Animations
    are decoded, since the durations of their frames are stored between the image data.

    Args:
        path: a video, an animated or single image, or a folder of images.
        fps: frame rate for folders of images and single images.

    Raises:
        InputError: the file is missing, corrupt or truncated, or PyAV is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _probe_folder(path, fps)
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        return _probe_video(path)
    return _probe_animation(path, fps)


def read_frames(
    path: Path,
    indices: Sequence[int],
    facts: ClipFacts | None = None,
    background: Colour = (255, 255, 255),
) -> np.ndarray:
    """Return the requested frames of a clip, (len(indices), h, w, 3), uint8, upright.

    Only these frames are kept in memory. A video is decoded from the last key frame before them.

    Args:
        path: as for `probe`.
        indices: frame numbers, 0 … frames - 1; in any order, repetitions allowed.
        facts: the result of `probe`, which is called if it is None.
        background: colour behind transparent images.

    Raises:
        InputError: as `probe`; or a frame cannot be decoded.
        IndexError: a number is out of range.
    """
    path = Path(path)
    facts = facts or probe(path)
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0 or wanted[-1] >= facts.frames:
        raise IndexError(f"{path}: frames {list(indices)} of {facts.frames}")
    if path.is_dir():
        files = sequence_files(path)
        read = ((number, _picture(files[number], background)) for number in wanted)
    elif path.suffix.lower() in VIDEO_EXTENSIONS:
        found = dict(_video_frames(path, wanted, facts))
        # If the container's index is wrong, the decoder starts too late.
        read = found.items() if len(found) == len(wanted) else _all_along(path, wanted, facts)
    else:
        read = _animation_frames(path, wanted, background)
    found = dict(read)
    missing = [number for number in wanted if number not in found]
    if missing:
        raise InputError(
            f"{path}: frame {missing[0] + 1} of {facts.frames} cannot be decoded; repair the file "
            "(ffmpeg -i OLD NEW) or remove it"
        )
    return np.stack([found[number] for number in indices])


def read_clip(path: Path, fps: float = DEFAULT_FPS) -> Footage:
    """Return all frames of a clip; see `probe` and `read_frames` for errors."""
    facts = probe(path, fps)
    return Footage(read_frames(path, range(facts.frames), facts), facts.fps)


# Folders of images


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Return a key that sorts frame2 before frame10."""
    words = re.split(r"(\d+)", path.name)
    return [(0, int(word)) if word.isdecimal() else (1, word.lower()) for word in words]


def sequence_files(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of their numbers, without hidden ones."""
    files = (
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURE_EXTENSIONS and not file.name.startswith(".")
    )
    return sorted(files, key=lambda file: (natural_order(file), file.name))


def _probe_folder(folder: Path, fps: float) -> ClipFacts:
    files = sequence_files(folder)
    if not files:
        raise InputError(
            f"{folder}: no pictures in this folder; looked for {', '.join(PICTURE_EXTENSIONS)}"
        )
    sizes = [_picture_size(file) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            (width, height), (first_width, first_height) = size, sizes[0]
            raise InputError(
                f"{file}: {width}x{height}, while {files[0].name} is {first_width}x{first_height}: "
                "the images of a clip must have one size"
            )
    return ClipFacts(len(files), fps, *sizes[0], np.arange(len(files)), 1 / fps)


def _picture_size(file: Path) -> tuple[int, int]:
    with _opened_picture(file) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if turned else image.size


def _picture(file: Path, background: Colour) -> np.ndarray:
    with _opened_picture(file) as image:
        return _laid_on(ImageOps.exif_transpose(image), background)


# Animated images


@contextmanager
def _opened_picture(path: Path) -> Iterator[Any]:
    """Open an image; raise InputError for anything wrong with it."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with Image.open(path) as opened:
            yield opened
    except InputError:
        raise
    except PILLOW_ERRORS as error:
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image or an animation: {reason}; repair or remove it"
        ) from None


def _shown(opened: Any) -> range:
    """Return an animation's frame numbers as Pillow counts them, without an APNG's fallback."""
    count = getattr(opened, "n_frames", 1)
    return range(int(count > 1 and getattr(opened, "default_image", False)), count)


def is_animated(path: Path) -> bool:
    """Return whether an image file contains several frames.

    Raises:
        InputError: it cannot be read.
    """
    with _opened_picture(path) as opened:
        return len(_shown(opened)) > 1


def _probe_animation(path: Path, fps: float) -> ClipFacts:
    with _opened_picture(path) as opened:
        shown = _shown(opened)
        durations = []
        for number in shown:
            opened.seek(number)
            opened.load()
            durations.append(opened.info.get("duration") or UNSAID_MILLISECONDS)
        width, height = ImageOps.exif_transpose(opened).size if len(shown) == 1 else opened.size
    if len(shown) == 1:
        return ClipFacts(1, fps, width, height, np.zeros(1, np.int64), 1.0)
    microseconds = np.cumsum([0, *(round(1000 * duration) for duration in durations)])
    rate = len(shown) * 1e6 / float(microseconds[-1])
    return ClipFacts(len(shown), rate, width, height, microseconds[:-1], 1e-6)


def _animation_frames(
    path: Path, wanted: Sequence[int], background: Colour
) -> Iterator[tuple[int, np.ndarray]]:
    with _opened_picture(path) as opened:
        shown = _shown(opened)
        for number in wanted:
            opened.seek(shown[number])
            image = ImageOps.exif_transpose(opened) if len(shown) == 1 else opened
            yield number, _laid_on(image, background)


def _laid_on(image: Image.Image, background: Colour) -> np.ndarray:
    """Return RGB (h, w, 3), uint8; a transparent image is composited on a plain colour."""
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        below = Image.new("RGBA", whole.size, (*background, 255))
        image = Image.alpha_composite(below, whole)
    return np.array(image.convert("RGB"))


# Videos


def pyav() -> Any:
    """Import PyAV.

    Raises:
        InputError: it is not installed.
    """
    return require("av", "video files", "PyAV", "video")


@contextmanager
def _opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield container and video stream, and close them; raise InputError for errors in them."""
    av = pyav()
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(
                    f"{path}: contains no images (or was cut off); replace or remove it"
                )
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read as a video: {reason}; repair it (ffmpeg -i OLD NEW) or "
            "remove it"
        ) from None


def _probe_video(path: Path) -> ClipFacts:
    """Read all packets, and decode the first frame."""
    with _opened_video(path) as (container, stream):
        first, packets, shown = _read_packets(path, container, stream)
        is_stamped = bool(STAMPED_FORMATS & set(container.format.name.split(",")))
        if is_stamped and stream.frames > packets:
            raise InputError(
                f"{path}: cut off: it ends after {packets} of {stream.frames} frames; replace it"
            )
        if first is None:
            raise InputError(f"{path}: no frame in it can be decoded; replace it")
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
        width, height = max(1, round(first.width * aspect)), first.height
        if first.rotation % 180:
            width, height = height, width
        known = [pts for pts, _ in shown if pts is not None]
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        if not is_stamped or len(set(known)) < len(shown):
            return ClipFacts(len(shown), rate, width, height, np.arange(len(shown)), 1 / rate)
        tick = float(stream.time_base)
    stamps = np.sort(np.array(known, np.int64))
    keys = np.sort(np.array([pts for pts, is_key in shown if is_key], np.int64))
    if len(stamps) > 1:
        rate = (len(stamps) - 1) / (float(stamps[-1] - stamps[0]) * tick)
    return ClipFacts(len(stamps), rate, width, height, stamps, tick, keys)


def _read_packets(
    path: Path, container: Any, stream: Any
) -> tuple[Any, int, list[tuple[int | None, bool]]]:
    """Read all packets of a video.

    Returns:
        The first frame (None if none can be decoded), the number of packets with content, and
        (stamp, whether it is a key frame) of those that are shown.

    Raises:
        InputError: a packet is corrupt.
    """
    first, packets, shown = None, 0, []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise InputError(f"{path}: damaged or cut off after {packets} frames; replace it")
        if packet.size:
            packets += 1
            if not packet.is_discard:
                shown.append((packet.pts, packet.is_keyframe))
        if first is None:
            first = next(iter(packet.decode()), None)
    return first, packets, shown


def _video_frames(
    path: Path, wanted: Sequence[int], facts: ClipFacts
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the wanted frames, ascending, decoding from the last key frame before them."""
    if facts.keys is None:
        yield from _all_along(path, wanted, facts)
        return
    with _opened_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        earlier = facts.keys[facts.keys <= facts.stamps[wanted[0]]]
        if len(earlier) > 1:
            container.seek(int(earlier[-1]), stream=stream)
        yield from _stamped(container.decode(stream), wanted, facts)


def _all_along(
    path: Path, wanted: Sequence[int], facts: ClipFacts
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the wanted frames, ascending, decoding from the start of the video."""
    pick = _counted if facts.keys is None else _stamped
    with _opened_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        yield from pick(container.decode(stream), wanted, facts)


def _stamped(
    frames: Iterator[Any], wanted: Sequence[int], facts: ClipFacts
) -> Iterator[tuple[int, np.ndarray]]:
    number_of = {int(facts.stamps[number]): number for number in wanted}
    last = max(number_of)
    for frame in frames:
        if (number := number_of.get(frame.pts)) is not None:
            yield number, _upright(frame, facts)
        if frame.pts is not None and frame.pts >= last:
            return


def _counted(
    frames: Iterator[Any], wanted: Sequence[int], facts: ClipFacts
) -> Iterator[tuple[int, np.ndarray]]:
    for number, frame in enumerate(frames):
        if number in wanted:
            yield number, _upright(frame, facts)
        if number >= wanted[-1]:
            return


def _upright(frame: Any, facts: ClipFacts) -> np.ndarray:
    """Return RGB (h, w, 3), uint8, in square pixels, rotated as the file says."""
    width, height = facts.width, facts.height
    if frame.rotation % 180:
        width, height = height, width
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
