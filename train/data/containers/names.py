"""File extensions, metadata file names and path patterns of data sources."""

import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path, PureWindowsPath

from inference.recipe import RecipeWarning
from train.common import DataError

PICTURE_EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".jfif", ".jpe", ".gif",
    ".jp2", ".ppm", ".qoi",
)  # fmt: skip
"""Extensions of images that Pillow reads."""
READ_BY_EXTRA = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""Extensions of images that the extra `formats` reads -> module and library."""
LOOKS_LIKE_DATA = frozenset(
    {
        *READ_BY_EXTRA,
        # images of other formats
        ".apng", ".arw", ".cr2", ".cr3", ".dds", ".dib", ".dng", ".eps", ".exr", ".hdr", ".hif",
        ".ico", ".j2c", ".j2k", ".jpc", ".jpf", ".jpx", ".jxr", ".kra", ".mpo", ".nef", ".orf",
        ".pam", ".pbm", ".pcx", ".pdf", ".pef", ".pfm", ".pgm", ".pnm", ".psb", ".psd", ".raf",
        ".rw2", ".srw", ".svg", ".tga", ".xcf",
        # videos
        ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv",
        # containers
        ".7z", ".arrow", ".bz2", ".gz", ".parquet", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst",
    }
)  # fmt: skip
"""Extensions of files that are not read beside images, and are counted in a message."""
HIDDEN_FOLDERS = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found")
"""Folders that systems and network disks create, besides those with a leading dot."""
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_SHARDS = 100_000
SPLITS = "dataset_dict.json"
"""Written beside the tables by `save_to_disk` of Hugging Face's `datasets`."""
METADATA_TABLE = "metadata.parquet"
"""It describes the images beside it, and holds none."""
HUB = "hf://"
SPLIT = re.compile(r"(train|validation|valid|val|test|dev|eval)(?=[-_.])")


@cache
def picture_extensions() -> tuple[str, ...]:
    """Return the extensions of images that can be read here: those of the extra if installed."""
    more = (ending for ending, (module, _) in READ_BY_EXTRA.items() if find_spec(module))
    return (*PICTURE_EXTENSIONS, *more)


def nfc(name: str) -> str:
    """Return a name in the usual spelling of its accents; macOS and some disks use another."""
    return unicodedata.normalize("NFC", name)


def windows_parts(name: str) -> tuple[str, ...] | None:
    r"""Return the parts of a path that Windows wrote, without its drive; None for other paths.

    `sub\a.png` has two parts, `C:\data\a.png` too.
    """
    path = PureWindowsPath(name)
    if not ("\\" in name or (path.drive and path.root)):
        return None
    return path.parts[1:] if path.anchor else path.parts


def chosen_split(splits: Sequence[str], asked: str | None, folder: Path, key: str) -> str:
    """Return the requested split; by default train, or the only one.

    Raises:
        DataError: there is no such split.
    """
    known = ", ".join(splits)
    if asked is not None:
        if asked not in splits:
            raise DataError(f"{key}: {str(folder)!r} has no split {asked!r}; there are {known}")
        return asked
    if len(splits) == 1:
        return splits[0]
    if "train" not in splits:
        raise DataError(f"{key}: {str(folder)!r} has the splits {known}; set data.split")
    message = f"{key}: of the splits {known} in {str(folder)!r} train is taken (data.split)"
    warnings.warn(message, RecipeWarning, stacklevel=2)
    return "train"


def expanded(pattern: str, key: str) -> Iterator[str]:
    """Yield the names that a pattern matches: `{000..012}` or `{a,b}`, any number of times.

    Raises:
        DataError: there are too many.
    """
    pieces = BRACES.split(pattern)
    choices: list[Sequence[str]] = []
    count = 1
    for piece in pieces[1::2]:
        if found := RANGE.fullmatch(piece):
            first, last = found.groups()
            width = len(first) if first.startswith("0") else 0
            numbers = range(int(first), int(last) + 1)
            count *= len(numbers)
            if 0 < count <= MOST_SHARDS:
                choices.append([f"{number:0{width}}" for number in numbers])
        else:
            choices.append(piece.split(","))
            count *= len(choices[-1])
        if not 0 < count <= MOST_SHARDS:
            raise DataError(
                f"{key}: {{{piece}}} makes {count} files of {pattern!r}, from 1 to {MOST_SHARDS} "
                "are possible; a range is {first..last}, such as {000..012}"
            )
    for chosen in product(*choices):
        names = [*chosen, ""]
        yield "".join(text + name for text, name in zip(pieces[::2], names, strict=True))


METADATA = "metadata.jsonl"
METADATA_FILES = (METADATA, "metadata.csv", METADATA_TABLE)
"""As Hugging Face's `datasets` reads a folder of images."""
