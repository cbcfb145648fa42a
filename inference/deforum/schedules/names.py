"""Names of an animation's folder and files, as in Deforum for A1111 3.0."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from inference.files import fitting
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.settings import Settings

TIME = "%Y%m%d%H%M%S"
LONGEST_VALUE = 50
"""Maximum number of characters of a setting in a name."""

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
SPECIAL = re.compile(r'[<>:"/\\|?*\s,\x00-\x1f\x7f]')


def timestring(now: datetime | None = None) -> str:
    """Return the prefix of the names of a run's files: its time, 14 digits."""
    return (now or datetime.now()).strftime(TIME)


def folder_name(settings: Settings, time: str) -> str:
    """Return the name of the run's folder: `batch_name` with `{setting}` filled in.

    Any setting can be used, in lower or upper case, and `{timestring}`; values are in lower case.
    Spaces, commas and characters that are special in some file system become `_`.

    Args:
        settings: with the run's seed drawn.
        time: from `timestring`.

    Raises:
        InputError: there is no such setting, or the name would be empty.
    """
    known = {key.casefold(): value for key, value in settings.values.items()}
    known["timestring"] = time

    def value(match: re.Match[str]) -> str:
        name = match[1].strip().casefold()
        if name not in known:
            raise InputError(f"batch_name: {match[0]} is not a setting; for example {{timestring}}")
        return str(known[name]).lower()[:LONGEST_VALUE]

    name = fitting(SPECIAL.sub("_", PLACEHOLDER.sub(value, settings["batch_name"])))
    if not name.strip("_"):
        raise InputError(f"batch_name: {settings['batch_name']!r} leaves the folder without a name")
    return name


def frame_name(time: str, frame: int) -> str:
    """Return the name of a frame's image."""
    return f"{time}_{frame:09}.png"


def settings_name(time: str) -> str:
    """Return the name of the settings file that a run writes."""
    return f"{time}_settings.txt"
