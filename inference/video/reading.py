"""Clips from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Footage:
    """The frames of a file."""

    frames: np.ndarray
    """(f, h, w, 3), uint8."""
    fps: float


def read_clip(path: Path) -> Footage:
    """All frames of an animated picture (placeholder until merged)."""
    frames, seconds = [], 0.0
    with Image.open(path) as opened:
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            frames.append(np.asarray(opened.convert("RGB")))
            seconds += opened.info.get("duration", 125) / 1000
    return Footage(np.stack(frames), len(frames) / (seconds or 1))
