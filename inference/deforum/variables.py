"""What formulas in schedules may name besides `t`, `s`, `max_f`: seconds, beats, events, sound.

The names are deforum-studio's (its `test_schedule_events.py` fixes what the event counts are);
those of the sound are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from inference.deforum.settings import Settings


def frame_variables(settings: Settings) -> dict[str, np.ndarray]:
    """Name -> one value a frame.

    - `f` the frame, `sec` its time, `fps`, `bpm`, `unique` the run's seed;
    - `beat` beats since the first one (`beat_offset` beats after the beginning), `whole_beat` the
      last full one, `progress_until_beat` the part of a beat since, `frames_until_beat` frames to
      the next one, 0 on it;
    - `events_passed` how many of `schedule_events` have come, `frames_until_next_event` (0 on it;
      to the last frame where none follows), `frames_since_prev_event` (since the one before this
      frame, or the beginning);
    - with `audio_path`: `rms`, `bass`, `mid`, `treble`, from 0 to 1.

    Raises:
        InputError: the file of `audio_path` cannot be read.
    """
    count = settings["max_frames"]
    fps, bpm = float(settings["fps"]), float(settings["bpm"])
    frames = np.arange(count)
    beat = frames * bpm / (60 * fps) - settings["beat_offset"]
    whole = np.floor(beat + 1e-9)
    progress = np.clip(beat - whole, 0, 1)
    variables = {
        "f": frames,
        "sec": frames / fps,
        "fps": np.full(count, fps),
        "bpm": np.full(count, bpm),
        "unique": np.full(count, settings["seed"]),
        "beat": beat,
        "whole_beat": whole,
        "progress_until_beat": progress,
        "frames_until_beat": np.where(progress < 1e-9, 0, (1 - progress) * 60 * fps / bpm),
    }
    variables |= event_counts(settings["schedule_events"], fps, count)
    if settings["audio_path"]:
        from inference.deforum.audio import audio_variables

        variables |= audio_variables(settings["audio_path"], fps, count)
    return variables


def event_counts(seconds: list[float], fps: float, count: int) -> dict[str, np.ndarray]:
    """How far the frames are from the events; an event falls on the frame that shows its time."""
    frames = np.arange(count)
    events = np.unique(np.floor(np.asarray(seconds, np.float64) * fps + 1e-9))
    passed = np.searchsorted(events, frames, side="right")
    following = np.append(events, max(count - 1, 0))
    upcoming = following[np.searchsorted(events, frames, side="left")]
    before = np.append(0, events)[np.searchsorted(events, frames, side="left")]
    return {
        "events_passed": passed,
        "frames_until_next_event": np.maximum(upcoming - frames, 0),
        "frames_since_prev_event": frames - before,
    }
