"""Clips as files: MP4, GIF and WebP with their infotext, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inference.files import Naming, fill_in, write_atomically
from inference.media import (
    DIGITS,
    LARGEST_SIDE,
    Mp4Options,
    animated_webp,
    encodable,
    image_grid,
    nothing_left,
    prepare_folder,
    reserve,
    reserve_name,
    user_comment,
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
    name = fill_in(files.file_name, naming)
    folder = prepare_folder(str(folder.joinpath(*name.folders)), "file_name")
    suffix, *others = files.suffixes
    if name.has_number:
        path = reserve(folder, name.before, DIGITS, f"{name.after}{suffix}", others)
    else:
        path = reserve_name(folder, name.before, suffix, others)
    paths = [path.with_suffix(ending) for ending in (suffix, *others)]
    with nothing_left(*paths):
        for file in paths:
            write_file(file, frames, fps, infotext, files.crf)
    return paths


def write_file(path: Path, frames: np.ndarray, fps: float, infotext: str, crf: int = 17) -> None:
    """Write a clip atomically, in the format of its suffix.

    Raises:
        InputError: it is mp4 and PyAV is missing, or webp and a side is too long.
    """
    text = encodable(infotext)
    match path.suffix:
        case ".mp4":
            write_mp4(path, frames, fps, Mp4Options(crf=crf, comment=text))
        case ".gif":
            write_gif(path, frames, fps, comment=text)
        case ".webp":
            write_webp(path, frames, fps, text)
        case ".txt":
            write_atomically(path, lambda file: file.write_text(f"{text}\n", encoding="utf-8"))
        case suffix:
            raise ValueError(f"no way to write a clip as {suffix}")


def write_webp(path: Path, frames: np.ndarray, fps: float, infotext: str) -> None:
    """Write a lossless animated WebP that repeats forever; infotext as in WebP images (Exif).

    Every frame stays separate, even if it equals the last.

    Raises:
        InputError: it is larger than WebP allows.
    """
    if max(frames.shape[1:3]) > LARGEST_SIDE:
        raise InputError(f"formats: webp has at most {LARGEST_SIDE} pixels on a side; take mp4")
    data = animated_webp(frames, fps, user_comment(infotext).removeprefix(b"Exif\0\0"))
    write_atomically(path, lambda file: file.write_bytes(data))


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
