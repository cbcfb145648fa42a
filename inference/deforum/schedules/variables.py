"""Loudness of a sound file over the frames of an animation, for use in schedules. Our addition.

`zoom: 0:(1 + 0.05*bass)` zooms with the bass. A file is decoded with PyAV (any format that FFmpeg
reads, also the sound of a video).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.runtime import InputError, require

if TYPE_CHECKING:
    from inference.deforum.settings import Settings


RATE = 22050
"""Sample rate of all measurements, per second."""

BANDS = {"bass": (20.0, 250.0), "mid": (250.0, 2000.0), "treble": (2000.0, 10000.0)}
"""Band -> its lower and upper limit in Hz."""

WINDOW = 2048
"""Samples around a frame's middle in which its bands are measured: 93 ms."""

BLOCK = 1024
"""Frames measured at once, to limit memory for long files."""


def audio_variables(path: str, fps: float, num_frames: int) -> dict[str, np.ndarray]:
    """Return the loudness of a file at each frame.

    Args:
        path: the file.
        fps: frames per second.
        num_frames: number of frames; after the sound's end there is silence.

    Returns:
        `rms` and each of `BANDS` -> (num_frames,) from 0 (silence) to 1 (the loudest frame).

    Raises:
        InputError: there is no such file, or no sound in it.
    """
    seconds = num_frames / fps + 1
    return measure(decode(path, seconds), RATE, fps, num_frames)


def measure(samples: np.ndarray, rate: float, fps: float, num_frames: int) -> dict[str, np.ndarray]:
    """Return the loudness of samples (n,) in -1 … 1 at each frame, each divided by its maximum.

    `rms` is the root mean square over the frame's time; bands are the magnitudes of a Fourier
    transform with a Hann window, as root mean square over the band.
    """
    starts = np.floor(np.arange(num_frames + 1) / fps * rate).astype(np.int64)
    needed = int(starts[-1]) + WINDOW
    padded = np.zeros(needed + WINDOW // 2)
    usable = samples[:needed]
    padded[WINDOW // 2 : WINDOW // 2 + len(usable)] = usable
    energy = np.concatenate([[0.0], np.cumsum(padded[WINDOW // 2 :] ** 2)])
    lengths = np.maximum(np.diff(starts), 1)
    total = energy[starts[:-1] + lengths] - energy[starts[:-1]]
    found = {"rms": np.sqrt(np.maximum(total, 0) / lengths)}
    found |= band_levels(padded, (starts[:-1] + starts[1:]) // 2, rate)
    return {name: levels / (levels.max() or 1.0) for name, levels in found.items()}


def band_levels(padded: np.ndarray, middles: np.ndarray, rate: float) -> dict[str, np.ndarray]:
    """Return the level of each band around samples; `padded` starts half a window early."""
    window = np.hanning(WINDOW)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / rate)
    chosen = {
        name: (frequencies >= low) & (frequencies < high) for name, (low, high) in BANDS.items()
    }
    levels = {name: np.zeros(len(middles)) for name in BANDS}
    for start in range(0, len(middles), BLOCK):
        block = slice(start, start + BLOCK)
        places = middles[block, None] + np.arange(WINDOW)
        power = np.abs(np.fft.rfft(padded[places] * window, axis=1)) ** 2
        for name, bins in chosen.items():
            levels[name][block] = np.sqrt(power[:, bins].mean(axis=1))
    return levels


def decode(path: str, seconds: float) -> np.ndarray:
    """Return the first seconds of a file's sound as one channel at `RATE`, in -1 … 1.

    Raises:
        InputError: there is no such file, or no sound in it; or PyAV is not installed.
    """
    av = require("av", "settings with audio_path", "PyAV", "anim")
    if not Path(path).is_file():
        raise InputError(f"audio_path: {path}: there is no such file")
    try:
        with av.open(path) as container:
            if not container.streams.audio:
                raise InputError(f"audio_path: {path}: has no sound")
            return joined_samples(av, container, int(seconds * RATE))
    except av.error.FFmpegError as error:
        raise InputError(f"audio_path: {path}: cannot be decoded: {error}") from None


def joined_samples(av: Any, container: Any, most: int) -> np.ndarray:
    """Return samples of an open file, as many as needed."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    parts: list[np.ndarray] = []
    count = 0
    for frame in container.decode(audio=0):
        for part in resampler.resample(frame):
            parts.append(part.to_ndarray().reshape(-1))
            count += parts[-1].size
        if count >= most:
            break
    else:
        parts += [part.to_ndarray().reshape(-1) for part in resampler.resample(None)]
    return np.concatenate([*parts, np.zeros(0, np.float32)])


def frame_variables(settings: Settings) -> dict[str, np.ndarray]:
    """Return name -> one value per frame.

    - `f` the frame, `sec` its time, `fps`, `bpm`, `unique` the run's seed;
    - `beat` beats since the first one (`beat_offset` beats after the start), `whole_beat` the last
      whole one, `progress_until_beat` the fraction of a beat since, `frames_until_beat` frames to
      the next one, 0 on it;
    - `events_passed` how many of `schedule_events` have occurred, `frames_until_next_event` (0 on
      it; to the last frame if there is none), `frames_since_prev_event` (since the one before this
      frame, or the start);
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
        variables |= audio_variables(settings["audio_path"], fps, count)
    return variables


def event_counts(seconds: list[float], fps: float, count: int) -> dict[str, np.ndarray]:
    """Return the distances in frames to the events; an event's frame is the one at its time."""
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
