"""What a stopped animation needs to go on as if it had never been stopped.

After every diffused frame one file is written whole or not at all; it holds all that later frames
depend on. (A resumed run of Deforum for A1111 3.0 begins its seeds anew, takes its colours from the
last picture, and so differs.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from inference.files import write_atomically
from inference.runtime import InputError

VERSION = 1


@dataclass
class State:
    """Where an animation is. Pictures are (h, w, 3) arrays; None where there is none yet."""

    frame: int = 0
    """The next frame to draw."""
    emitted: int = 0
    """Frames that are complete: 0 … emitted - 1."""
    feedback: np.ndarray | None = None
    """What the next frame begins with, before it is moved."""
    color_sample: np.ndarray | None = None
    previous: np.ndarray | None = None
    """The older one of the cadence pair."""
    previous_index: int = -1
    """The frame to which the camera has taken it."""
    next: np.ndarray | None = None
    next_index: int = -1
    flow: np.ndarray | None = None
    """The last hybrid flow, (h, w, 2)."""
    seeds: dict[str, Any] = field(default_factory=dict)
    """Of `inference.deforum.schedules.seeds.SeedSequence`."""
    drawn: dict[str, int] = field(default_factory=dict)
    """Diffused frames and their seeds."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else later frames depend on: numbers, texts, lists."""


def save_state(path: Path, state: State, fingerprint: str) -> None:
    """Writes a state; `fingerprint` says which settings it belongs to."""
    arrays, plain = {}, {}
    for name, value in vars(state).items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            plain[name] = value
    text = json.dumps({"version": VERSION, "fingerprint": fingerprint, "state": plain})
    arrays["json"] = np.frombuffer(text.encode(), np.uint8)

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


def load_state(path: Path) -> tuple[State, str]:
    """The state of a file, and the fingerprint of the settings it belongs to.

    Raises:
        InputError: it cannot be read, or is of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(arrays.pop("json").tobytes())
        if (version := told["version"]) != VERSION:
            raise InputError(
                f"{path}: written by another version ({version}; this one is {VERSION})"
            )
        return State(**told["state"], **arrays), told["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a state to resume from: {error}") from error
