"""New files in an output folder: numbered, written atomically, never overwriting."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image

from inference.files import (
    Naming,
    fill_in,
    name_new,
    one_at_a_time,
    sync,
    unfinished,
)
from inference.media.pictures import encodable, fitting_format, picture_writer, png_writer
from inference.runtime import InputError, naming

Write = Callable[[Path], object]
"""Writes a file at a path."""

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


def write_numbered(
    folder: Path, before: str, digits: int, after: str, files: Mapping[str, Write]
) -> list[Path]:
    """Write files `before`NUMBER`after`SUFFIX, with a number above all existing ones, from 0.

    Counts as A1111 does: all files with the same `before` count, whatever follows their number.
    Several processes may write into a folder at once: no number is given twice.

    Args:
        folder: an existing folder.
        before: before the number.
        digits: minimum number of digits.
        after: between the number and the suffix.
        files: what writes each file, by suffix.
    """
    form = re.compile(rf"{re.escape(before)}(\d{{{digits},}})(?!\d)")

    def names() -> Iterator[str]:
        taken = [int(match[1]) for file in folder.iterdir() if (match := form.match(file.name))]
        first = max(taken, default=-1) + 1
        return (f"{before}{number:0{digits}d}{after}" for number in count(first))

    return write_first_free(folder, names, files)


def write_named(folder: Path, name: str, files: Mapping[str, Write]) -> list[Path]:
    """Write files `name`SUFFIX, or, if one of them exists, `name`-1, `name`-2 and so on."""

    def names() -> Iterator[str]:
        return (f"{name}{f'-{number}' if number else ''}" for number in count())

    return write_first_free(folder, names, files)


def write_first_free(
    folder: Path, names: Callable[[], Iterator[str]], files: Mapping[str, Write]
) -> list[Path]:
    """Write files under the first name of which none exists yet; return their paths.

    They are complete under hidden names before one of them gets its final name.
    """
    expected = next(names())  # for messages; another process may be faster
    with ExitStack() as stack:
        hidden = {
            suffix: stack.enter_context(unfinished(folder / f"{expected}{suffix}"))
            for suffix in files
        }
        for suffix, write in files.items():
            with naming(folder / f"{expected}{suffix}", hidden[suffix]):
                write(hidden[suffix])
                sync(hidden[suffix])
        with one_at_a_time(folder):
            for name in names():
                targets = {folder / f"{name}{suffix}": path for suffix, path in hidden.items()}
                if name_all(targets):
                    return list(targets)
    raise AssertionError("names never end")


def name_all(targets: Mapping[Path, Path]) -> bool:
    """Give hidden files their final names; return False if one of these exists."""
    done: list[Path] = []
    try:
        for target, path in targets.items():
            name_new(path, target)
            done.append(target)
    except OSError as error:
        for target in done:
            if targets[target].exists():  # under both names
                target.unlink()
            else:
                target.replace(targets[target])
        if not isinstance(error, FileExistsError):
            raise
        return False
    return True


def write_new(
    folder: Path,
    image: Image.Image,
    texts: Mapping[str, str],
    before: str = "",
    digits: int = DIGITS,
    after: str = "",
) -> Path:
    """Save an image as PNG with texts under the next free number; return its path."""
    files = {".png": png_writer(image, texts)}
    return write_numbered(folder, before, digits, after, files)[0]


def write_files(
    folder: Path, file_name: str, naming: Naming, files: Mapping[str, Write]
) -> list[Path]:
    """Write files under the new name that a pattern gives; return their paths.

    Args:
        folder: of the results.
        file_name: the pattern.
        naming: the fields for the name.
        files: what writes each file, by suffix.

    Raises:
        InputError: the pattern is invalid, or a folder that it names cannot be created.
    """
    name = fill_in(file_name, naming)
    folder = prepare_folder(str(folder.joinpath(*name.folders)), "file_name")
    if name.has_number:
        return write_numbered(folder, name.before, DIGITS, name.after, files)
    return write_named(folder, name.before, files)


def write_picture(
    folder: Path, image: Image.Image, infotext: str, naming: Naming, form: PictureForm
) -> Path:
    """Save an image with its infotext under the name that its pattern gives; return its path.

    An image or infotext that is too large for the format is saved as PNG, with a warning.

    Raises:
        InputError: the pattern is invalid, or a folder that it names cannot be created.
    """
    suffix = f".{fitting_format(image.size, infotext, form.file_format)}"
    files: dict[str, Write] = {suffix: picture_writer(suffix, image, infotext, form.quality)}
    if form.save_text:
        files[".txt"] = text_writer(f"{encodable(infotext)}\n")
    return write_files(folder, form.file_name, naming, files)[0]


def text_writer(text: str) -> Write:
    """Return a function that writes a text in UTF-8."""
    return lambda file: file.write_text(text, encoding="utf-8")
