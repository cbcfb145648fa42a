"""What captions and tables of others may contain, and where they may lead."""

from __future__ import annotations

import os
import re
from pathlib import Path

from train.common import DataError
from train.data.containers import PICTURE_EXTENSIONS

LONGEST_CAPTION = 100_000
"""Maximum number of characters of a caption; encoders read some hundred."""

HALF_CHARACTER = re.compile("[\ud800-\udfff]")


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


def check_within(name: str, path: Path, folder: Path, where: str) -> None:
    """Check that the file that a table names lies in the table's folder.

    Args:
        name: as in the table.
        path: the file that it stands for.
        folder: the table's.
        where: begins the message.

    Raises:
        DataError: it lies elsewhere.
    """
    if ".." not in name and name[:1] not in ("/", "\\") and ":" not in name:
        return  # almost all
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
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
