"""Frames that are extracted from a video count only when all of them are there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.deforum.schedules.sources import Extraction, VideoFrames
from inference.media.video_writing import write_gif


def test_a_killed_extraction_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the frames of the extraction before it are asked for again."""
    shades = [np.full((8, 8, 3), 30 * number, np.uint8) for number in range(6)]
    write_gif(tmp_path / "a.gif", shades, 8)

    def shown(extraction: Extraction) -> list[int]:
        folder = tmp_path / "frames"
        video = VideoFrames(tmp_path / "a.gif", "video_init_path", folder, (8, 8), extraction)
        return [int(video[number].mean()) for number in range(len(video))]

    every, second = Extraction(), Extraction(step=2)
    expected = shown(every)
    assert len(set(expected)) == 6

    decoded = VideoFrames.decoded

    def two_only(self: VideoFrames, extraction: Extraction) -> Iterator[np.ndarray]:
        yield from itertools.islice(decoded(self, extraction), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(VideoFrames, "decoded", two_only)
        with pytest.raises(KeyboardInterrupt):
            shown(second)
    assert shown(every) == expected
    assert not list(tmp_path.rglob(".*"))
