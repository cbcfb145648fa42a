"""Names of an animation's folder and files, as Deforum for A1111 3.0 gives them."""

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
"""Letters that a setting in a name has at most."""

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
SPECIAL = re.compile(r'[<>:"/\\|?*\s,\x00-\x1f\x7f]')


def timestring(now: datetime | None = None) -> str:
    """What the names of a run's files begin with: its time, 14 digits."""
    return (now or datetime.now()).strftime(TIME)


def folder_name(settings: Settings, time: str) -> str:
    """The name of the run's folder: `batch_name` with `{setting}` filled in.

    Any setting can stand there in small or capital letters, and `{timestring}`; values are in small
    letters. Spaces, commas and signs that are special in some file system become `_`.

    Args:
        settings: with the run's seed drawn.
        time: of `timestring`.

    Raises:
        InputError: there is no such setting, or no name is left.
    """
    known = {key.casefold(): value for key, value in settings.values.items()}
    known["timestring"] = time

    def value(match: re.Match[str]) -> str:
        name = match[1].strip().casefold()
        if name not in known:
            raise InputError(f"batch_name: {match[0]} is no setting; for example {{timestring}}")
        return str(known[name]).lower()[:LONGEST_VALUE]

    name = fitting(SPECIAL.sub("_", PLACEHOLDER.sub(value, settings["batch_name"])))
    if not name.strip("_"):
        raise InputError(f"batch_name: {settings['batch_name']!r} leaves no name for the folder")
    return name


def frame_name(time: str, frame: int) -> str:
    """The name of a frame's picture."""
    return f"{time}_{frame:09}.png"


def settings_name(time: str) -> str:
    """The name of the settings file that a run writes."""
    return f"{time}_settings.txt"
