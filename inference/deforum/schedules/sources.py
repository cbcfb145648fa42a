"""Images that an animation starts from or follows: files, videos, folders.

Nothing is opened for a feature that is off, and nothing is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from inference.files import write_atomically
from inference.media import PICTURES, image_writer, iter_frames, pictures_in
from inference.recipe import at_home
from inference.runtime import InputError

DIGITS = 9
"""Number of digits in names."""


def local(path: object, key: str) -> Path:
    """Return the file or folder that a setting names.

    Raises:
        InputError: it names none, or is a web address.
    """
    text = at_home(str(path or "").strip().strip('"'))
    if not text or text == "None":
        raise InputError(f"{key}: must name a file; its feature is switched on")
    if "://" in text:
        raise InputError(f"{key}: {text} is not downloaded; save it and give its path")
    if not Path(text).exists():
        raise InputError(
            f"{key}: there is no file {text!r}; give the path of one, or switch it off"
        )
    return Path(text)


def open_picture(path: object, key: str, width: int, height: int) -> np.ndarray:
    """Open an image file, stretched (Lanczos) to the frame's size: uint8 RGB (height, width, 3).

    Raises:
        InputError: there is no such file, or it is not an image.
    """
    from inference.images import open_init_image

    return fitted(open_init_image(local(path, key), key=key), width, height)


def open_alpha_picture(path: object, key: str) -> Image.Image:
    """Open an image file as it is, with its transparency.

    Raises:
        InputError: there is no such file, or it is not an image.
    """
    from inference.images import read_image

    return read_image(local(path, key), key)


def fitted(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Return an image in the frame's size, uint8 RGB (height, width, 3)."""
    image = image.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image)


@dataclass(frozen=True)
class Extraction:
    """Which frames of a video are extracted.

    Attributes:
        first: first frame, counted from 0.
        last: last frame, inclusive; -1 is the end.
        step: take every n-th frame, counted from the video's first.
        anew: write them again even if they exist.
        most: how many at most; None is all of them.
    """

    first: int = 0
    last: int = -1
    step: int = 1
    anew: bool = False
    most: int | None = None

    @property
    def count(self) -> int | None:
        """Return the number of frames after which none is needed; None without a limit."""
        if self.last == -1:
            return self.most
        within = len(range(-(-self.first // self.step) * self.step, self.last + 1, self.step))
        return within if self.most is None else min(within, self.most)

    def keeps(self, number: int) -> bool:
        """Return whether a frame is extracted."""
        is_before_end = self.last == -1 or number <= self.last
        return number % self.step == 0 and self.first <= number and is_before_end


class VideoFrames:
    """The frames of a video, or the images of a folder, that an animation uses.

    A video's frames are written once, as PNG files, to a folder (Deforum writes JPEG files), so
    that memory does not grow and a resumed run finds them.

    Args:
        path: the video (any that FFmpeg reads, also GIF) or a folder of images.
        key: its key in the settings, for messages.
        folder: folder for its frames; None only counts those of a video, and keeps the first.
        size: (width, height) of the frames returned.
        extraction: which frames are taken; all of them if None.

    Raises:
        InputError: it cannot be read, or no frames are left.
    """

    def __init__(
        self,
        path: object,
        key: str,
        folder: Path | None,
        size: tuple[int, int],
        extraction: Extraction | None = None,
    ) -> None:
        self.source = local(path, key)
        self.key = key
        self.folder = folder
        self.size = size
        self.first: np.ndarray | None = None
        extraction = extraction or Extraction()
        self.files = self.extracted(extraction)
        if not self.files:
            first, last, step = extraction.first, extraction.last, extraction.step
            raise InputError(
                f"{key}: no frames of {self.source} are left with extract_from_frame={first}, "
                f"extract_to_frame={last}, extract_nth_frame={step}"
            )
        self.read = lru_cache(maxsize=8)(self._read)

    def extracted(self, extraction: Extraction) -> list[Path]:
        """Return the files of the frames; write them unless they exist."""
        if self.source.is_dir():
            files = [file for n, file in enumerate(pictures_in(self.source)) if extraction.keeps(n)]
            return files[: extraction.count]
        if self.folder is None:
            return self.counted(extraction)
        stat = self.source.stat()
        which = f"{extraction.first}-{extraction.last}-{extraction.step}"
        which += "" if extraction.most is None else f"-{extraction.most}"
        origin = f"{self.source.resolve()} {which} {stat.st_size} {stat.st_mtime_ns}"
        stamp = self.folder / f"{self.source.stem}.txt"
        stem = self.source.stem
        if not extraction.anew and stamp.is_file() and stamp.read_text("utf-8") == origin:
            return sorted(self.folder.glob(f"{glob_safe(stem)}{'[0-9]' * DIGITS}.png"))
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)  # the last thing written: without it the frames count not
        for old in self.folder.glob(f"{glob_safe(stem)}{'[0-9]' * DIGITS}.png"):
            old.unlink()
        files = []
        # islice() ends at the last frame that is needed, without decoding the others.
        for number, picture in enumerate(islice(self.decoded(extraction), extraction.count)):
            files.append(self.folder / f"{stem}{number:0{DIGITS}}.png")
            write = image_writer(Image.fromarray(picture), "PNG", compress_level=1)
            write_atomically(files[-1], write)
        write_atomically(stamp, lambda file: file.write_text(origin, "utf-8"))
        return files

    def counted(self, extraction: Extraction) -> list[Path]:
        """Return a path for each frame that would be written, and keep the first frame."""
        found: list[Path] = []
        for picture in islice(self.decoded(extraction), extraction.count):
            self.first = picture if self.first is None else self.first
            found.append(self.source)
        return found

    def decoded(self, extraction: Extraction) -> Iterable[np.ndarray]:
        """Return the images of the video, or the one of an image file."""
        if self.source.suffix.lower() in set(PICTURES) - {".gif"}:
            from inference.images import read_image

            return [np.array(read_image(self.source, self.key).convert("RGB"))]
        return iter_frames(self.source, self.key, extraction.keeps)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, number: int) -> np.ndarray:
        if self.first is not None:
            return fitted(Image.fromarray(self.first), *self.size)
        from inference.images import open_init_image

        return fitted(open_init_image(self.files[number], key=self.key), *self.size)

    def __getitem__(self, frame: int) -> np.ndarray:
        """Return the image for a frame; after the end the last one, at -1 the first.

        Returns:
            uint8 RGB (height, width, 3), read-only.
        """
        return self.read(min(max(frame, 0), len(self.files) - 1))

    def remove(self) -> None:
        """Delete the files written."""
        if self.folder is not None and not self.source.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)


def glob_safe(text: str) -> str:
    """Escape the characters that have a meaning in glob patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
