"""Find infotext in image files and in text files beside them (A1111 1.10.1, `images.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inference.images.infotext.text import is_parameters
from inference.media import read_user_comment
from inference.runtime import InputError

if TYPE_CHECKING:
    from PIL import Image


LARGEST_TEXT = 2**22
"""Maximum size of a .txt in bytes; a larger one is something else."""


def read_infotext(path: Path) -> str | None:
    """Return the infotext in an image file, or in the .txt beside it; None if there is none.

    A .txt whose last line has no parameters is something else, such as a caption.

    Raises:
        OSError: the image does not exist, or cannot be read.
    """
    from PIL import Image

    with Image.open(path) as image:
        image.load()  # texts may follow the pixels
        return find_infotext(image) or read_text_beside(path)


def find_infotext(image: Image.Image) -> str | None:
    """Return the infotext of an open image, from A1111, Forge, NovelAI, or ours."""
    from inference.images.infotext.other_programs import is_fooocus, is_novel_ai, translate_novel_ai

    if is_novel_ai(image.info):
        return translate_novel_ai(image.info, image.size)
    if is_fooocus(image.info):
        return None
    text = image.info.get("parameters") or read_user_comment(image)
    comment = image.info.get("comment")
    if not text and isinstance(comment, bytes):
        text = comment.decode("utf-8", "ignore")
    return text if isinstance(text, str) and text else None


def read_text_beside(path: Path) -> str | None:
    """Return the infotext of the .txt of the same name, as A1111 writes it on demand."""
    side = path.with_suffix(".txt")
    try:
        is_small = side.is_file() and side.stat().st_size <= LARGEST_TEXT
        text = side.read_text(encoding="utf-8").strip() if is_small else ""
    except UnicodeDecodeError:
        return None  # not A1111's text
    except OSError as error:
        raise InputError(f"{side}: cannot be read: {error.strerror}") from error
    return text if is_parameters(text.rpartition("\n")[2]) else None
