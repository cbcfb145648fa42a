"""The files of a run, under the names that Deforum for A1111 3.0 gives them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from inference.deforum.schedules import DIGITS, timestring
from inference.files import write_atomically
from inference.media import prepare_folder
from inference.runtime import DrawWarning, InputError

SETTINGS = re.compile(r"(\d{14})_settings\.txt")


@dataclass(frozen=True)
class RunFolder:
    """A folder and what its files begin with."""

    path: Path
    timestring: str

    def file(self, rest: str) -> Path:
        """`TIMESTRINGrest`."""
        return self.path / f"{self.timestring}{rest}"

    @property
    def settings(self) -> Path:
        return self.file("_settings.txt")

    @property
    def state(self) -> Path:
        return self.file("_state.npz")

    def frame(self, number: int) -> Path:
        return self.file(f"_{number:0{DIGITS}}.png")

    def frames(self) -> list[Path]:
        """The frames that are there, in their order."""
        return sorted(self.path.glob(f"{self.timestring}_{'[0-9]' * DIGITS}.png"))

    def save_frame(self, number: int, picture: np.ndarray) -> None:
        """Writes a frame, whole or not at all."""
        save_png(self.frame(number), picture)

    def save_depth(self, number: int, depth: np.ndarray) -> None:
        """Writes a frame's map of depths, (h, w)."""
        save_png(self.file(f"_depth_{number:0{DIGITS}}.png"), depth)

    def make(self) -> None:
        """Makes the folder.

        Raises:
            InputError: it cannot be one.
        """
        prepare_folder(str(self.path), "batch_name")


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, (h, w) or (h, w, 3), whole or not at all."""
    image = Image.fromarray(picture)
    write_atomically(path, lambda file: image.save(file, format="PNG", compress_level=4))


def new_run(folder_at: Callable[[str], Path]) -> RunFolder:
    """A run of its own, named by the time; by the next second that is free, if need be.

    Args:
        folder_at: the folder of a timestring.
    """
    now = datetime.now()
    while True:
        time = timestring(now)
        run = RunFolder(folder_at(time), time)
        if not run.settings.exists():
            return run
        now += timedelta(seconds=1)


def run_of_settings(path: str | Path) -> RunFolder | None:
    """The run that a settings file was saved by, if it lies in its folder still."""
    path = Path(path)
    named = SETTINGS.fullmatch(path.name)
    if named is None:
        return None
    run = RunFolder(path.parent, named[1])
    return run if run.state.is_file() or run.frames() else None


def run_of_timestring(folder: Path, timestring: str) -> RunFolder:
    """The run of a timestring, in a folder or anywhere below it.

    Raises:
        InputError: there is none that can be resumed.
    """
    if not re.fullmatch(r"\d{14}", timestring):
        raise InputError(f"resume_timestring: expected 14 digits, got {timestring!r}")
    states = sorted(folder.rglob(f"{timestring}_state.npz")) if folder.is_dir() else []
    if not states:
        raise InputError(
            f"resume_timestring: there is no {timestring}_state.npz in {folder} or below it;"
            " nothing of such a run can be gone on with"
        )
    return RunFolder(states[-1].parent, timestring)


def latest_run(folder: Path, fits: str) -> RunFolder:
    """The run whose state was written last, among those of the same settings.

    Args:
        folder: where runs have their folders.
        fits: the fingerprint of the settings.

    Raises:
        InputError: there is none.
    """
    from inference.deforum.loop import load_state

    states = sorted(folder.rglob("*_state.npz"), key=lambda file: -file.stat().st_mtime_ns)
    for state in states:
        try:
            written_with = load_state(state)[1]
        except InputError as error:
            warnings.warn(f"resume: passed over: {error}", DrawWarning, stacklevel=2)
            continue
        if written_with == fits:
            return RunFolder(state.parent, state.name.removesuffix("_state.npz"))
    found = f"{len(states)} with other settings" if states else "none at all"
    raise InputError(
        f"resume: no animation of these settings was stopped in {folder} (there are {found}); name "
        "the settings file that the run has saved, or resume_from_timestring and resume_timestring"
    )
