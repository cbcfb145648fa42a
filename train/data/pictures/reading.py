"""Decode an image file to upright pixels in sRGB, or raise one message that names it."""

import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ELOOP
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from inference.runtime import is_system_fault
from train.common import DataError
from train.data.containers import file_state, open_file
from train.data.pictures.colours import Planes, check_numbers, in_srgb, planes, profile_of

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "PPM", "QOI",
    "HEIF", "JXL",
)  # fmt: skip
"""Formats that are read, whatever a file's extension; the last two by the extra `formats`. Not
EPS and the like, which start programs."""
READING = 2
"""Part of the names of cached latents: increase it when the same file gives other pixels."""
MAX_PIXELS = 178_956_970
"""Larger images count as decompression bombs, as in Pillow itself."""
READING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    ImageCms.PyCMSError,
)
"""Exceptions that Pillow's readers raise for corrupt files."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientations."""


class Header(NamedTuple):
    """Metadata of an image file that can be read without its pixels."""

    width: int
    """Width of the upright image."""
    height: int
    notes: tuple[str, ...] = ()
    """Keys of `NOTES`."""


NOTES = {
    "animated": "are animated: their first frame is used",
    "pages": "have several pages: the first is used",
    "profile": "have a colour profile that is corrupt or of another colour space: they are "
    "read as sRGB",
    "exif": "have corrupt EXIF data: they are read as upright",
}
"""Warnings about usable images."""


def read_picture(path: Path) -> Image.Image:
    """Return the first frame of an image, upright and in sRGB: RGBA if transparent, else RGB.

    16 bits become 8; an embedded ICC profile that is not sRGB's is applied (perceptual intent).

    Raises:
        DataError: the file cannot be decoded.
    """
    with quiet():
        return read_picture_in_quiet(path)


def read_picture_in_quiet(path: Path) -> Image.Image:
    """Read as `read_picture`; the caller handles Pillow's warnings (see `quiet`)."""
    with opened(path) as image:
        return decoded(image)


def decoded(image: Any) -> Image.Image:
    """Return the upright image in sRGB of an open one."""
    # Pillow rotates TIFF itself, and reports its size after that.
    turn = None if image.format == "TIFF" else TURNS.get(_orientation(image)[0])
    profile = profile_of(image)
    parts = planes(image)
    if turn is not None:
        alpha = None if parts.alpha is None else parts.alpha.transpose(turn)
        parts = Planes(parts.colours.transpose(turn), alpha)
    return in_srgb(parts, profile)


def read_header(path: Path) -> Header:
    """Return the size of the upright image, with notes.

    Raises:
        DataError: it is not a readable image, according to its first bytes.
    """
    with quiet():
        return header(path)


def header(path: Path) -> Header:
    """Read as `read_header`; the caller handles Pillow's warnings."""
    with opened(path) as image:
        return header_of(image)


def header_of(image: Any) -> Header:
    """Return the size and notes of an open image."""
    check_numbers(image)
    orientation, is_broken = _orientation(image)
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("pages" if image.format == "TIFF" else "animated")
    if image.info.get("icc_profile") and image.mode != "LAB" and profile_of(image) is None:
        notes.append("profile")
    if is_broken:
        notes.append("exif")
    is_turned = orientation >= 5 and image.format != "TIFF"
    width, height = image.size[::-1] if is_turned else image.size
    return Header(width, height, tuple(notes))


def shown(path: Path) -> str:
    r"""Return a printable path: bytes of its name that are not UTF-8 as \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow about metadata; without effect in other threads than the main one.

    Warnings are filtered for all threads at once, so that those of a pool enter it together, before
    they start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    Image.init()
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    if find_spec("pillow_jxl"):
        import_module("pillow_jxl")  # registers itself
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def opened(path: Path, content: BytesIO | None = None) -> Iterator[Any]:
    """Open the image of a file; every error is raised as DataError.

    Args:
        path: the file.
        content: its bytes, if they have been read.
    """
    try:
        if content is None and not is_plain(path):
            raise DataError(f"{shown(path)}: is not a file; remove it, or rename it")
        with content or open_file(path) as file, Image.open(file, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            yield image
    except DataError:
        raise
    except READING_ERRORS as error:
        if is_system_fault(error):
            raise
        raise DataError(
            f"{shown(path)}: cannot be read as a picture: {_reason(path, error)}; mend or remove it"
        ) from None


def is_plain(path: Path) -> bool:
    """Return whether the path is a regular file: opening a pipe would block forever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return True  # opening reports it
    return stat.S_ISREG(mode)


def _reason(path: Path, error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        known = ", ".join(sorted({*_formats()} - {"MPO", "DIB"}))
        return f"its content is none of {known}" if file_state(path)[0] else "the file is empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"its header declares more than {MAX_PIXELS} pixels"
    if isinstance(error, OSError) and error.errno is not None:
        return "its links go in a circle" if error.errno == ELOOP else str(error.strerror)
    return str(error).replace(str(path), path.name) or type(error).__name__


def _orientation(image: Any) -> tuple[int, bool]:
    """Return EXIF's orientation, 1 … 8; and whether the EXIF data cannot be read."""
    if image.format == "PNG" and _has_late_metadata(image.fp):
        image = _read_to_its_end(image.fp)
    try:
        # A PNG's own getexif would read all pixels to find metadata after them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return (orientation if orientation in TURNS else 1), False
    except READING_ERRORS:
        return 1, True


def _read_to_its_end(file: Any) -> Image.Image:
    """Return another image of the same file, with the metadata after its pixels."""
    before = file.tell()
    file.seek(0)
    image = Image.open(BytesIO(file.read()), formats=["PNG"])
    file.seek(before)
    image.load()
    return image


def _has_late_metadata(file: Any) -> bool:
    """Return whether EXIF or XMP follow a PNG's pixels, as ExifTool writes them."""
    before, is_late, name = file.tell(), False, b""
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    try:
        while len(head := file.read(8)) == 8 and name != b"IEND":
            length, name = struct.unpack(">I4s", head)
            is_late = is_late or name == b"IDAT"
            if is_late and name in (b"eXIf", b"iTXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    finally:
        file.seek(before)
    return False
