"""Clips as files: MP4, GIF and WebP with their infotext, and contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inference.files import Naming, write_atomically
from inference.media import (
    LARGEST_SIDE,
    Mp4Options,
    animated_webp,
    encodable,
    image_grid,
    text_writer,
    user_comment,
    write_files,
    write_gif,
    write_mp4,
)
from inference.runtime import InputError

SHEET_COLUMNS = 8
"""Frames of a clip on a contact sheet, at most."""


@dataclass(frozen=True)
class ClipFiles:
    """The files to write for each clip."""

    file_name: str
    """The name's pattern."""
    formats: Sequence[str]
    """Of mp4, gif and webp, each once."""
    crf: int = 17
    """Quality of mp4."""
    has_text: bool = False
    """Whether to write a .txt as well."""

    @property
    def suffixes(self) -> list[str]:
        """Return the suffixes of a clip's files, beginning with the first format's."""
        return [f".{kind}" for kind in self.formats] + ([".txt"] if self.has_text else [])


def write_clip(
    folder: Path,
    frames: np.ndarray,
    fps: float,
    infotext: str,
    naming: Naming,
    files: ClipFiles,
) -> list[Path]:
    """Write a clip in every format under one new name; return the paths.

    Args:
        folder: of the results.
        frames: (f, h, w, 3), uint8.
        fps: frames in a second.
        infotext: goes into every file.
        naming: the fields for the name.
        files: formats, and the pattern of the name.

    Raises:
        InputError: the pattern cannot be used, or PyAV is missing.
    """
    writers = {
        suffix: clip_writer(suffix, frames, fps, infotext, files.crf) for suffix in files.suffixes
    }
    return write_files(folder, files.file_name, naming, writers)


def clip_writer(
    suffix: str, frames: np.ndarray, fps: float, infotext: str, crf: int = 17
) -> Callable[[Path], object]:
    """Return a function that writes a clip in the format of a suffix.

    Raises:
        InputError: it is webp and a side is too long.
    """
    text = encodable(infotext)
    match suffix:
        case ".mp4":
            return lambda file: write_mp4(file, frames, fps, Mp4Options(crf=crf, comment=text))
        case ".gif":
            return lambda file: write_gif(file, frames, fps, comment=text)
        case ".webp":
            data = webp_bytes(frames, fps, text)
            return lambda file: file.write_bytes(data)
        case ".txt":
            return text_writer(f"{text}\n")
        case _:
            raise ValueError(f"no way to write a clip as {suffix}")


def write_webp(path: Path, frames: np.ndarray, fps: float, infotext: str) -> None:
    """Write what `webp_bytes` returns, atomically.

    Raises:
        InputError: it is larger than WebP allows.
    """
    data = webp_bytes(frames, fps, infotext)
    write_atomically(path, lambda file: file.write_bytes(data))


def webp_bytes(frames: np.ndarray, fps: float, infotext: str) -> bytes:
    """Return a lossless animated WebP that repeats forever; infotext as in WebP images (Exif).

    Every frame stays separate, even if it equals the last.

    Raises:
        InputError: it is larger than WebP allows.
    """
    if max(frames.shape[1:3]) > LARGEST_SIDE:
        raise InputError(f"formats: webp has at most {LARGEST_SIDE} pixels on a side; take mp4")
    return animated_webp(frames, fps, user_comment(infotext).removeprefix(b"Exif\0\0"))


def contact_sheet(clips: Sequence[np.ndarray], labels: Sequence[str]) -> Image.Image:
    """Return an image of each clip's frames from first to last, with a row for each clip.

    Args:
        clips: each (f, h, w, 3), uint8.
        labels: one for each clip.
    """
    rows, headers = [], []
    for frames in clips:
        count = min(len(frames), SHEET_COLUMNS)
        places = [round(number * (len(frames) - 1) / max(count - 1, 1)) for number in range(count)]
        rows.append([Image.fromarray(frames[place]) for place in places])
        headers.append([f"frame {place}" for place in places])
    shown = headers[:1] if all(header == headers[0] for header in headers) else headers
    return image_grid(rows, labels, shown)
