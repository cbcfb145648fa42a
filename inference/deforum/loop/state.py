"""The state from which a stopped animation continues as if it had never been stopped.

After every diffused frame one file is written atomically; it contains everything that later frames
depend on. (In Deforum for A1111 3.0 a resumed run restarts its seeds, takes its colours from the
last image, and so differs.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from inference.files import write_atomically, write_once
from inference.runtime import InputError

VERSION = 1


@dataclass
class State:
    """Progress of an animation. Images are (h, w, 3) arrays; None if there is none yet."""

    frame: int = 0
    """The next frame to generate."""
    emitted: int = 0
    """Number of complete frames: 0 … emitted - 1."""
    feedback: np.ndarray | None = None
    """The image that the next frame starts from, before it is moved."""
    color_sample: np.ndarray | None = None
    previous: np.ndarray | None = None
    """The older image of the cadence pair."""
    previous_index: int = -1
    """The frame that the camera has moved it to."""
    next: np.ndarray | None = None
    next_index: int = -1
    flow: np.ndarray | None = None
    """The last hybrid flow, (h, w, 2)."""
    seeds: dict[str, Any] = field(default_factory=dict)
    """State of `inference.deforum.schedules.seeds.SeedSequence`."""
    drawn: dict[str, int] = field(default_factory=dict)
    """Diffused frames and their seeds."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Other values that later frames depend on: numbers, texts, lists."""


def save_state(path: Path, state: State, fingerprint: str, is_first: bool = False) -> None:
    """Write a state.

    Args:
        path: the file.
        state: the state.
        fingerprint: identifies its settings.
        is_first: whether it must not exist yet.

    Raises:
        FileExistsError: it is the first one, and there is another.
    """
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

    (write_once if is_first else write_atomically)(path, write)


def load_state(path: Path) -> tuple[State, str]:
    """Return the state in a file, and the fingerprint of its settings.

    Raises:
        InputError: it cannot be read, or is of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        content = json.loads(arrays.pop("json").tobytes())
        if (version := content["version"]) != VERSION:
            raise InputError(
                f"{path}: written by another version ({version}; this one is {VERSION})"
            )
        return State(**content["state"], **arrays), content["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a state to resume from: {error}") from error
