"""Of a long video or animated image, only as many frames are read as an animation needs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.deforum.schedules import sources
from inference.deforum.schedules.sources import Extraction, VideoFrames
from inference.runtime import DrawWarning

LENGTH = 40


@pytest.fixture
def gif(tmp_path: Path) -> Path:
    frames = [Image.new("RGB", (16, 16), (6 * number, 0, 0)) for number in range(LENGTH)]
    path = tmp_path / "long.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, loop=0)
    return path


@pytest.mark.parametrize(
    ("extraction", "files", "decoded"),
    [
        (Extraction(), LENGTH, LENGTH),
        (Extraction(most=5), 5, 5),
        (Extraction(first=3, step=2, most=4), 4, 11),
        (Extraction(last=6), 7, 7),
        (Extraction(first=3, last=9, step=4), 2, 9),
        (Extraction(first=3, last=9, step=4, most=1), 1, 5),
        (Extraction(most=1000), LENGTH, LENGTH),
    ],
)
def test_frames_beyond_those_needed_are_not_decoded(
    extraction: Extraction,
    files: int,
    decoded: int,
    gif: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted by the numbers that are asked whether to keep them: 300,000 would take hours."""
    asked = []

    def counted(path: Path, key: str, keep):
        def noted(number: int) -> bool:
            asked.append(number)
            return keep(number)

        return original(path, key, noted)

    original = sources.iter_frames
    monkeypatch.setattr(sources, "iter_frames", counted)
    video = VideoFrames(gif, "video_init_path", tmp_path / "frames", (16, 16), extraction)
    assert len(video) == len(list((tmp_path / "frames").glob("*.png"))) == files
    assert len(asked) == decoded
    assert np.array_equal(video[files + 10], video[files - 1])


def test_script_asks_for_as_many_as_it_shows(gif: Path, tmp_path: Path) -> None:
    from inference.config import AnimationRecipe
    from inference.deforum.schedules import Script
    from inference.deforum.settings import recipe_settings

    settings = {
        "W": 64, "H": 64, "max_frames": 6, "animation_mode": "2D", "use_mask_video": True,
        "use_mask": True, "video_mask_path": str(gif), "video_init_path": str(gif),
    }  # fmt: skip
    script = Script(recipe_settings(AnimationRecipe(settings=settings)), folder=tmp_path)
    assert len(script.open_video("video_mask_path", "maskframes")) == 6


@pytest.mark.parametrize(
    "mode",
    [{"animation_mode": "Video Input"}, {"hybrid_composite": "Normal"}],
    ids=["mode", "hybrid"],
)
@pytest.mark.parametrize(
    ("compat", "frames", "decoded"), [("fixed", 3, 13), ("deforum-3.0", LENGTH // 4, LENGTH)]
)
def test_animations_of_a_video_end_at_max_frames(
    compat, frames: int, decoded: int, mode: dict[str, str], gif: Path, tmp_path: Path, monkeypatch
) -> None:
    """Deforum ignores `max_frames`: of a GIF of 300,000 frames it writes them all."""
    from inference.config import AnimationRecipe
    from inference.deforum.schedules import Script
    from inference.deforum.settings import recipe_settings

    asked = []
    original = sources.iter_frames
    monkeypatch.setattr(
        sources,
        "iter_frames",
        lambda path, key, keep: original(path, key, lambda n: asked.append(n) or keep(n)),
    )
    settings = {
        "W": 64, "H": 64, "max_frames": 3, "animation_mode": "2D", "extract_nth_frame": 4,
        "video_init_path": str(gif), **mode,
    }  # fmt: skip

    def script() -> Script:
        recipe = recipe_settings(AnimationRecipe(settings=settings))
        return Script(recipe, compat, tmp_path / compat)

    if compat == "fixed":
        with pytest.warns(DrawWarning, match="max_frames: the animation ends after 3 frames"):
            assert script().max_frames == frames
    else:
        assert script().max_frames == frames
    assert len(asked) == decoded
    settings["max_frames"] = LENGTH // 4  # as many as there are
    assert script().max_frames == LENGTH // 4
