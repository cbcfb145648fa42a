"""Find infotext in image files and in text files beside them (A1111 1.10.1, `images.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inference.images.infotext.text import has_parameters
from inference.media import read_user_comment
from inference.runtime import InputError

if TYPE_CHECKING:
    from PIL import Image


POSTPROCESSED = "extras", "postprocessing"
"""Keywords in PNGs of A1111's Extras tab."""

LARGEST_TEXT = 2**22
"""Maximum size of a .txt in bytes; a larger one is something else."""


def read_infotext(path: Path) -> str | None:
    """Return the infotext in an image file, or in the .txt beside it; None if there is none.

    A .txt without parameters is something else, such as a caption.

    Raises:
        InputError: a text of another program is damaged.
        OSError: the image does not exist, or cannot be read.
    """
    from PIL import Image

    with Image.open(path) as image:
        image.load()  # texts may follow the pixels
        try:
            text = find_infotext(image)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return text or read_text_beside(path)


def find_infotext(image: Image.Image) -> str | None:
    """Return the infotext of an open image, from A1111, Forge, ours, or translated from others.

    Raises:
        InputError: a text of another program is damaged.
    """
    from inference.images.infotext.json_programs import (
        is_easy_diffusion,
        is_json,
        is_novel_ai,
        looks_like_json,
        translate_easy_diffusion,
        translate_json,
        translate_novel_ai,
    )

    info = image.info
    if is_novel_ai(info):
        return translate_novel_ai(info, image.size)
    comment = info.get("comment")
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", "ignore")
    texts = [info.get("parameters"), read_user_comment(image), comment]
    text = next((text for text in texts if isinstance(text, str) and text), None)
    if text is None and is_easy_diffusion(info):
        return translate_easy_diffusion(info, image.size)
    is_object = text is not None and looks_like_json(text)
    if text is not None and is_object and (is_json(text) or not has_parameters(text)):
        return translate_json(text, image.size)
    return text or next((info[key] for key in POSTPROCESSED if info.get(key)), None)


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
    return text if has_parameters(text) else None
