"""What captions and tables of others may contain, and where they may lead."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from train.common import DataError
from train.data.containers import PICTURE_EXTENSIONS

LONGEST_CAPTION = 100_000
"""Maximum number of characters of a caption; encoders read some hundred."""

HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def parse_json(text: str, where: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        DataError: it is no JSON, is nested deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: not JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON that can be read: {error}") from error


def check_caption(text: str, where: str) -> None:
    """Check that a text can be a caption.

    Raises:
        DataError: it is too long, or contains a character that no text can contain.
    """
    if not text.isascii() and (found := HALF_CHARACTER.search(text)):
        code = f"U+{ord(found[0]):04X}"
        raise DataError(f"{where}: contains the character {code}, which text cannot contain")
    if len(text) > LONGEST_CAPTION:
        raise DataError(
            f"{where}: a caption of {len(text)} characters; expected {LONGEST_CAPTION} at most"
        )


def check_within(name: str, folder: Path, where: str) -> None:
    """Check that a table's file name stays in the table's folder.

    Raises:
        DataError: it leads out of it.
    """
    if ".." not in name and name[:1] not in ("/", "\\") and ":" not in name:
        return  # almost all
    whole = os.path.normpath(folder / name)
    is_outside = not Path(whole).is_relative_to(os.path.normpath(folder))
    is_outside |= ".." in PureWindowsPath(name).parts and "\\" in name
    if is_outside or re.match(r"[A-Za-z]:[\\/]", name):
        raise DataError(
            f"{where}: file_name {name[:200]!r} leads out of the folder of the table; name files "
            "in it and below, by paths relative to it"
        )


def is_followed(path: Path) -> bool:
    """Return whether the file of a caption's name is one, and no link out of the data.

    A link is followed within its folder and below, and to a caption that lies beside the file of
    its picture, as where both are links to a collection.
    """
    if not path.is_symlink():
        return True
    target, folder = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    if target.is_relative_to(folder):
        return True
    beside = (target.with_suffix(ending) for ending in PICTURE_EXTENSIONS)
    return any(picture.is_file() for picture in beside)
