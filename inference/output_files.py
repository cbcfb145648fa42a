"""New files in a folder of results: numbered on, never overwriting, whole or not there."""

import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from inference.errors import InputError
from inference.infotext import save_png


def prepare_folder(path: str, key: str = "output_dir") -> Path:
    """The folder, made if it is not there.

    Raises:
        InputError: it cannot be one; `key` is what the recipe calls it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key}: {path!r} cannot be a folder: {error.strerror}") from error
    return folder


def reserve(folder: Path, before: str, digits: int, after: str) -> Path:
    """An empty new file `before`NUMBER`after`; its number is above all of this kind, from 0 on.

    As A1111 counts: files of the same `before` count, whatever comes after their number.
    """
    form = re.compile(rf"{re.escape(before)}(\d{{{digits},}})(?!\d)")
    taken = [int(match[1]) for file in folder.iterdir() if (match := form.match(file.name))]
    number = max(taken, default=-1) + 1
    while True:
        path = folder / f"{before}{number:0{digits}d}{after}"
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:  # another process was faster
            number += 1


def write_new(
    folder: Path,
    image: Image.Image,
    texts: Mapping[str, str],
    before: str = "",
    digits: int = 5,
    after: str = "",
) -> Path:
    """Saves a picture as PNG with texts under the next free number; returns its path."""
    path = reserve(folder, before, digits, f"{after}.png")
    try:
        save_png(path, image, texts)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
