"""Infotext in image files, where A1111 stores it.

Source: A1111 1.10.1 `modules/images.py` (`save_image_with_geninfo`, `read_info_from_image`). PNG: a
text chunk `parameters` (tEXt if Latin-1 can encode it, otherwise iTXt). JPEG, WebP and AVIF: the
Exif tag UserComment, as the library piexif writes it. GIF: the comment.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")


def pictures_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


EXIF_IFD, USER_COMMENT, UNDEFINED, LONG = 0x8769, 0x9286, 7, 4
"""Exif: the tags of the Exif directory and of the comment in it, and the types of their values."""

ENCODINGS = {
    b"UNICODE\0": "utf-16-be",
    b"ASCII\0\0\0": "ascii",
    b"JIS\0\0\0\0\0": "shift_jis",
    b"\0\0\0\0\0\0\0\0": "utf-8",
}
"""The first 8 bytes of a UserComment -> how the rest is encoded."""

LARGEST_SIDES = {"jpg": 65535, "jpeg": 65535, "webp": 16383, "avif": 65535}
"""Maximum side in pixels."""

LARGEST_JPEG_COMMENT = 65533 - 6 - 40
"""Maximum bytes of a comment that fit into JPEG's segment beside the directories."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif")


def save_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    """Write a PNG atomically, with texts by keyword; A1111's keyword is `parameters`."""
    write_atomically(path, png_writer(image, texts))


def png_writer(image: Image.Image, texts: Mapping[str, str]) -> Callable[[Path], object]:
    """Return a function that writes a PNG with texts by keyword."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_text(keyword, encodable(text))
    return image_writer(image, "PNG", pnginfo=chunks)


def image_writer(image: Image.Image, kind: str, **options: Any) -> Callable[[Path], object]:
    """Return a function that writes an image in Pillow's format `kind`.

    It is encoded in memory: Pillow's own writing of JPEG loses data on a full disk without an error
    (`encode_to_file` takes a short write for a complete one).
    """

    def write(file: Path) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        file.write_bytes(buffer.getbuffer())

    return write


def save_picture(path: Path, image: Image.Image, infotext: str, quality: int = 80) -> None:
    """Write an image with its infotext atomically; the suffix decides the format.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .avif or .gif.
        image: RGB; transparent pixels become opaque in JPEG.
        infotext: A1111's text of settings.
        quality: of JPEG, WebP and AVIF, 1 … 100.

    Raises:
        ValueError: another suffix, or an image or infotext too large for the format
            (`fitting_format` checks this).
    """
    write_atomically(path, picture_writer(path.suffix, image, infotext, quality))


def picture_writer(
    suffix: str, image: Image.Image, infotext: str, quality: int = 80
) -> Callable[[Path], object]:
    """Return a function that writes the same to a file of any name.

    Raises:
        ValueError: no images end in this suffix.
    """
    infotext, suffix = encodable(infotext), suffix.lower()
    options: dict[str, Any] = {"quality": quality, "exif": user_comment(infotext)}
    if suffix == ".png":
        return png_writer(image, {"parameters": infotext})
    if suffix == ".gif":
        options = {"comment": infotext.encode()}
    elif suffix not in SUFFIXES:
        raise ValueError(f"pictures end in {', '.join(SUFFIXES)}, not in {suffix!r}")
    elif suffix in (".jpg", ".jpeg") and image.mode != "RGB":
        image = image.convert("RGB")
    kind = {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())
    return image_writer(image, kind, **options)


def fitting_format(size: tuple[int, int], infotext: str, wanted: str) -> str:
    """Return the wanted format (`jpg`, …), or `png` if image or infotext is too large for it.

    Warns if it returns another format than wanted.
    """
    reason = ""
    if max(size) > LARGEST_SIDES.get(wanted, max(size)):
        reason = f"{size[0]}x{size[1]} pixels are more than {LARGEST_SIDES[wanted]}"
    length = len(encodable(infotext).encode("utf-16-be"))
    if wanted in ("jpg", "jpeg") and 8 + length > LARGEST_JPEG_COMMENT:
        reason = "its infotext is longer than JPEG can hold"
    if not reason:
        return wanted
    warnings.warn(f"saved as png, not as {wanted}: {reason}", stacklevel=2)
    return "png"


def user_comment(text: str) -> bytes:
    """Return Exif data with the text as its UserComment, byte for byte as piexif writes it.

    There are two directories, the second with one tag: 40 bytes from the header to the comment.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    return b"".join(
        [
            b"Exif\0\0MM\0*" + struct.pack(">I", 8),
            struct.pack(">HHHIII", 1, EXIF_IFD, LONG, 1, 26, 0),
            struct.pack(">HHHII", 1, USER_COMMENT, UNDEFINED, len(comment), 40),
            comment,
        ]
    )


def encodable(text: str) -> str:
    """Return the text with lone surrogates replaced, which no encoding can represent."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_user_comment(image: Image.Image) -> str | None:
    """Return the text of the Exif tag UserComment, in any of its encodings."""
    try:
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except (ValueError, KeyError, OSError, SyntaxError, TypeError, struct.error):
        return None  # the Exif data is damaged, but the image is readable
    if isinstance(comment, str):
        return comment
    return decode_comment(comment) if isinstance(comment, bytes) else None


def decode_comment(comment: bytes) -> str:
    """Decode a UserComment; accept both byte orders of UTF-16, since some programs mix them up."""
    encoding = ENCODINGS.get(comment[:8])
    if encoding is None:
        return comment.decode("utf-8", "ignore")
    content = comment[8:]
    if encoding == "utf-16-be":
        zeros = content[0::2].count(0), content[1::2].count(0)
        is_little = content[:2] == b"\xff\xfe" or zeros[1] > zeros[0]
        encoding = "utf-16-le" if is_little else encoding
    return content.decode(encoding, "replace").removeprefix("\ufeff").strip("\0")
