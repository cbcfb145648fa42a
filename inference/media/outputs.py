"""New files in an output folder: numbered, written atomically, never overwriting."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image

from inference.files import Naming, fill_in, write_atomically
from inference.media.pictures import encodable, fitting_format, save_picture, save_png
from inference.runtime import InputError

DIGITS = 5
"""Minimum number of digits of the numbers in names."""


@dataclass(frozen=True)
class PictureForm:
    """How images are saved; as in recipes of `type: images`."""

    file_name: str = "[number]-[seed]"
    file_format: str = "png"
    quality: int = 80
    save_text: bool = False


def prepare_folder(path: str, key: str = "output_dir") -> Path:
    """Create the folder unless it exists; return its path.

    Raises:
        InputError: it cannot be a folder; `key` is its key in the recipe.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key}: {path!r} cannot be a folder: {error.strerror}") from error
    return folder


def reserve(folder: Path, before: str, digits: int, after: str, beside: Sequence[str] = ()) -> Path:
    """Create an empty file `before`NUMBER`after`, with a number above all existing ones, from 0.

    Counts as A1111 does: all files with the same `before` count, whatever follows their number.
    `beside` are the suffixes of further files to create, such as `.txt`.
    """
    form = re.compile(rf"{re.escape(before)}(\d{{{digits},}})(?!\d)")
    taken = [int(match[1]) for file in folder.iterdir() if (match := form.match(file.name))]
    names = (f"{before}{number:0{digits}d}{after}" for number in count(max(taken, default=-1) + 1))
    return first_free(folder, names, beside)


def reserve_name(folder: Path, name: str, suffix: str, beside: Sequence[str] = ()) -> Path:
    """Create an empty file `name``suffix`, or, if it exists, `name`-1, `name`-2 and so on."""
    names = (f"{name}{f'-{number}' if number else ''}{suffix}" for number in count())
    return first_free(folder, names, beside)


def first_free(folder: Path, names: Iterator[str], beside: Sequence[str] = ()) -> Path:
    """Create the first of the files that does not exist yet, empty; return its path."""
    for name in names:
        path = folder / name
        made: list[Path] = []
        try:
            for file in (path, *map(path.with_suffix, beside)):
                file.touch(exist_ok=False)
                made.append(file)
            return path
        except FileExistsError:  # it existed, or another process was faster
            for file in made:
                file.unlink()
    raise AssertionError("names never end")


def write_new(
    folder: Path,
    image: Image.Image,
    texts: Mapping[str, str],
    before: str = "",
    digits: int = DIGITS,
    after: str = "",
) -> Path:
    """Save an image as PNG with texts under the next free number; return its path."""
    path = reserve(folder, before, digits, f"{after}.png")
    with nothing_left(path):
        save_png(path, image, texts)
    return path


def write_picture(
    folder: Path, image: Image.Image, infotext: str, naming: Naming, form: PictureForm
) -> Path:
    """Save an image with its infotext under the name that its pattern gives; return its path.

    An image or infotext that is too large for the format is saved as PNG, with a warning.

    Raises:
        InputError: the pattern is invalid, or a folder that it names cannot be created.
    """
    name = fill_in(form.file_name, naming)
    folder = prepare_folder(str(folder.joinpath(*name.folders)), "file_name")
    suffix = f".{fitting_format(image.size, infotext, form.file_format)}"
    beside = [".txt"] if form.save_text else []
    if name.has_number:
        path = reserve(folder, name.before, DIGITS, f"{name.after}{suffix}", beside)
    else:
        path = reserve_name(folder, name.before, suffix, beside)
    sides = [path.with_suffix(ending) for ending in beside]
    with nothing_left(path, *sides):
        save_picture(path, image, infotext, form.quality)
        text = f"{encodable(infotext)}\n"
        for side in sides:
            write_atomically(side, lambda file: file.write_text(text, encoding="utf-8"))
    return path


@contextmanager
def nothing_left(*files: Path) -> Iterator[None]:
    """Delete the files if the block that writes them fails."""
    try:
        yield
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
