"""New files in a folder of results: numbered on, never overwriting, whole or not there."""

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
"""Of the numbers in names, at least."""


@dataclass(frozen=True)
class PictureForm:
    """How pictures are saved; as in recipes of `type: images`."""

    file_name: str = "[number]-[seed]"
    file_format: str = "png"
    quality: int = 80
    save_text: bool = False


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


def reserve(folder: Path, before: str, digits: int, after: str, beside: Sequence[str] = ()) -> Path:
    """An empty new file `before`NUMBER`after`; its number is above all of this kind, from 0 on.

    As A1111 counts: files of the same `before` count, whatever comes after their number. `beside`
    are the endings of further files to make, such as `.txt`.
    """
    form = re.compile(rf"{re.escape(before)}(\d{{{digits},}})(?!\d)")
    taken = [int(match[1]) for file in folder.iterdir() if (match := form.match(file.name))]
    names = (f"{before}{number:0{digits}d}{after}" for number in count(max(taken, default=-1) + 1))
    return first_free(folder, names, beside)


def reserve_name(folder: Path, name: str, suffix: str, beside: Sequence[str] = ()) -> Path:
    """An empty new file `name``suffix`; if that is taken `name`-1, `name`-2 and so on."""
    names = (f"{name}{f'-{number}' if number else ''}{suffix}" for number in count())
    return first_free(folder, names, beside)


def first_free(folder: Path, names: Iterator[str], beside: Sequence[str] = ()) -> Path:
    """The first of the names that no file has yet, made as an empty file."""
    for name in names:
        path = folder / name
        made: list[Path] = []
        try:
            for file in (path, *map(path.with_suffix, beside)):
                file.touch(exist_ok=False)
                made.append(file)
            return path
        except FileExistsError:  # there before, or another process was faster
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
    """Saves a picture as PNG with texts under the next free number; returns its path."""
    path = reserve(folder, before, digits, f"{after}.png")
    with nothing_left(path):
        save_png(path, image, texts)
    return path


def write_picture(
    folder: Path, image: Image.Image, infotext: str, naming: Naming, form: PictureForm
) -> Path:
    """Saves a picture with its infotext under a name that its pattern makes; returns its path.

    What is too large for the format is saved as PNG, with a warning.

    Raises:
        InputError: the pattern cannot be used, or a folder that it names cannot be made.
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
    """Takes the files away where what should fill them fails."""
    try:
        yield
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
