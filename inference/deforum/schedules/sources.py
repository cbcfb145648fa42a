"""Pictures that an animation begins with or goes along with: files, videos, folders.

Nothing is opened whose feature is off, and nothing is fetched from the net.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from inference.images import open_init_image, read_image
from inference.media import PICTURES, iter_frames, pictures_in
from inference.runtime import InputError

DIGITS = 9
"""Of the numbers in names."""


def local(path: object, key: str) -> Path:
    """The file or folder that a setting names.

    Raises:
        InputError: it names none, or an address on the net.
    """
    text = str(path or "").strip().strip('"')
    if not text or text == "None":
        raise InputError(f"{key}: must name a file; its feature is switched on")
    if "://" in text:
        raise InputError(f"{key}: {text} is not fetched from the net; save it and give its path")
    if not Path(text).exists():
        raise InputError(
            f"{key}: there is no file {text!r}; give the path of one, or switch it off"
        )
    return Path(text)


def open_picture(path: object, key: str, width: int, height: int) -> np.ndarray:
    """A picture file, stretched (Lanczos) to the frame's size: uint8 RGB (height, width, 3).

    Raises:
        InputError: there is no such file, or it is no picture.
    """
    return fitted(open_init_image(local(path, key), key=key), width, height)


def open_alpha_picture(path: object, key: str) -> Image.Image:
    """A picture file as it is, with its transparency.

    Raises:
        InputError: there is no such file, or it is no picture.
    """
    return read_image(local(path, key), key)


def fitted(image: Image.Image, width: int, height: int) -> np.ndarray:
    """A picture in the frame's size, uint8 RGB (height, width, 3)."""
    image = image.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image)


class VideoFrames:
    """The frames of a video, or the pictures of a folder, that an animation uses.

    A video's are written once, as PNG files, into a folder (Deforum writes JPEG files there), so
    that memory does not grow and a resumed run finds them.

    Args:
        path: the video (any that FFmpeg reads, GIFs too) or a folder of pictures.
        key: what the settings call it, for messages.
        folder: where its frames are written.
        size: (width, height) in which they are given out.
        first: of the video's frames, counted from 0.
        last: of the video's frames, itself included; -1 is the end.
        step: every how many frames one is taken, counted from the video's first.
        anew: write them again if they are there already.

    Raises:
        InputError: it cannot be read, or no frames are left.
    """

    def __init__(
        self,
        path: object,
        key: str,
        folder: Path,
        size: tuple[int, int],
        first: int = 0,
        last: int = -1,
        step: int = 1,
        anew: bool = False,
    ) -> None:
        self.source = local(path, key)
        self.key = key
        self.folder = folder
        self.size = size

        def keep(number: int) -> bool:
            return number % step == 0 and first <= number and (last == -1 or number <= last)

        self.files = self.extracted(keep, f"{first}-{last}-{step}", anew)
        if not self.files:
            raise InputError(
                f"{key}: no frames of {self.source} are left with extract_from_frame={first}, "
                f"extract_to_frame={last}, extract_nth_frame={step}"
            )
        self.read = lru_cache(maxsize=8)(self._read)

    def extracted(self, keep, what: str, anew: bool) -> list[Path]:
        """The files of the frames, written now unless they are there."""
        if self.source.is_dir():
            return [file for n, file in enumerate(pictures_in(self.source)) if keep(n)]
        stat = self.source.stat()
        told = f"{self.source.resolve()} {what} {stat.st_size} {stat.st_mtime_ns}"
        stamp = self.folder / f"{self.source.stem}.txt"
        stem = self.source.stem
        if not anew and stamp.is_file() and stamp.read_text("utf-8") == told:
            return sorted(self.folder.glob(f"{glob_safe(stem)}{'[0-9]' * DIGITS}.png"))
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"{glob_safe(stem)}{'[0-9]' * DIGITS}.png"):
            old.unlink()
        files = []
        for number, picture in enumerate(self.decoded(keep)):
            files.append(self.folder / f"{stem}{number:0{DIGITS}}.png")
            Image.fromarray(picture).save(files[-1], compress_level=1)
        stamp.write_text(told, "utf-8")
        return files

    def decoded(self, keep):
        """Pictures of the video, or the one of a picture file."""
        if self.source.suffix.lower() in set(PICTURES) - {".gif"}:
            return [np.array(read_image(self.source, self.key).convert("RGB"))]
        return iter_frames(self.source, self.key, keep)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, number: int) -> np.ndarray:
        return fitted(open_init_image(self.files[number], key=self.key), *self.size)

    def __getitem__(self, frame: int) -> np.ndarray:
        """The picture for a frame of the animation; behind the end the last one, at -1 the first.

        Returns:
            uint8 RGB (height, width, 3), not to be written to.
        """
        return self.read(min(max(frame, 0), len(self.files) - 1))

    def remove(self) -> None:
        """Takes away what was written."""
        if not self.source.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)


def glob_safe(text: str) -> str:
    """With the signs that mean something in patterns as themselves."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
