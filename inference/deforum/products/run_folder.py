"""The files of a run, named as in Deforum for A1111 3.0."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from inference.deforum.schedules import DIGITS, timestring
from inference.files import HeldFile, hold_file, write_atomically
from inference.media import image_writer, prepare_folder
from inference.runtime import DrawWarning, InputError

SETTINGS = re.compile(r"(\d{14})_settings\.txt")


@dataclass(frozen=True)
class RunFolder:
    """A folder and the prefix of its files."""

    path: Path
    timestring: str

    def file(self, rest: str) -> Path:
        """Return the path of `TIMESTRINGrest`."""
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
        """Return the existing frames, in order."""
        return sorted(self.path.glob(f"{self.timestring}_{'[0-9]' * DIGITS}.png"))

    def save_frame(self, number: int, picture: np.ndarray) -> None:
        """Write a frame atomically."""
        save_png(self.frame(number), picture)

    def save_depth(self, number: int, depth: np.ndarray) -> None:
        """Write a frame's depth map, (h, w)."""
        save_png(self.file(f"_depth_{number:0{DIGITS}}.png"), depth)

    def hold(self) -> HeldFile:
        """Lock the settings file, until it is released or this process ends.

        Raises:
            InputError: another process holds it.
        """
        file = hold_file(self.settings)
        if file is None:
            raise InputError(
                f"{self.settings}: another process is drawing this animation; wait until it has "
                "ended, or draw another one without resume"
            )
        return file

    def make(self) -> None:
        """Create the folder.

        Raises:
            InputError: it cannot be created.
        """
        prepare_folder(str(self.path), "batch_name")


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write an image, (h, w) or (h, w, 3), atomically."""
    write_atomically(path, image_writer(Image.fromarray(picture), "PNG", compress_level=4))


def new_run(folder_at: Callable[[str], Path]) -> RunFolder:
    """Return a new run, named by the time, or by the next second that is free.

    Args:
        folder_at: returns the folder of a timestring.
    """
    now = datetime.now()
    while True:
        time = timestring(now)
        run = RunFolder(folder_at(time), time)
        if not run.settings.exists() and not run.state.exists():
            return run
        now += timedelta(seconds=1)


def run_of_settings(path: str | Path, output_dir: Path) -> RunFolder | None:
    """Return the run that saved a settings file; None for a copy of one.

    Args:
        path: the file.
        output_dir: contains the folders of runs; a file elsewhere needs other files of its run
            beside it.
    """
    path = Path(path)
    named = SETTINGS.fullmatch(path.name)
    if named is None:
        return None
    run = RunFolder(path.parent, named[1])
    is_here = path.resolve().is_relative_to(output_dir.resolve())
    return run if is_here or run.state.is_file() or run.frames() else None


def run_of_timestring(folder: Path, timestring: str) -> RunFolder:
    """Return the run of a timestring, in a folder or anywhere below it.

    Raises:
        InputError: there is none that can be resumed.
    """
    if not re.fullmatch(r"\d{14}", timestring):
        raise InputError(f"resume_timestring: expected 14 digits, got {timestring!r}")
    for end in ("_state.npz", "_settings.txt"):
        if found := sorted(folder.rglob(f"{timestring}{end}")) if folder.is_dir() else []:
            return RunFolder(found[-1].parent, timestring)
    raise InputError(
        f"resume_timestring: there is no {timestring}_state.npz in {folder} or below it;"
        " such a run cannot be resumed"
    )


def latest_run(folder: Path, fits: str) -> RunFolder | None:
    """Return the run with the newest state, among those with the same settings.

    A run that ended before its first frame counts only if no other one did more.

    Args:
        folder: contains the folders of runs.
        fits: the fingerprint of the settings.
    """
    from inference.deforum.loop import load_state

    states = sorted(folder.rglob("*_state.npz"), key=lambda file: -file.stat().st_mtime_ns)
    without_frames: list[RunFolder] = []
    for file in states:
        try:
            state, written_with = load_state(file)
        except InputError as error:
            warnings.warn(f"resume: skipped: {error}", DrawWarning, stacklevel=2)
            continue
        if written_with != fits:
            continue
        run = RunFolder(file.parent, file.name.removesuffix("_state.npz"))
        if state.emitted:
            return run
        without_frames.append(run)
    return without_frames[0] if without_frames else None


def runs_without_state(folder: Path) -> Iterator[RunFolder]:
    """Yield runs that have saved their settings and no state, the newest first."""
    files = sorted(folder.rglob("*_settings.txt"), key=lambda file: -file.stat().st_mtime_ns)
    for file in files:
        named = SETTINGS.fullmatch(file.name)
        if named and not (run := RunFolder(file.parent, named[1])).state.is_file():
            yield run
