"""A run of 24 frames killed before any of them is saved, and resumed: equal in every byte."""

import shutil

import pytest
from PIL import Image

from inference.deforum.loop.generator import SeededGenerator, random_picture

FRAMES = 24
CARRIED = {
    "W": 40,
    "H": 32,
    "max_frames": FRAMES,
    "seed_behavior": "ladder",
    "angle": "0:(2)",
    "zoom": "0:(1.02)",
    "noise_schedule": "0:(0.05)",
    "amount_schedule": "0:(0.3)",
    "contrast_schedule": "0:(1.02)",
    "color_coherence": "LAB",
    "diffusion_redo": 1,
    "optical_flow_redo_generation": "DIS Medium",
    "hybrid_motion": "Optical Flow",
    "hybrid_flow_method": "DIS Medium",
    "hybrid_composite": "Normal",
}
"""What frames take over from those before: seeds, colours, cadence pair, flow, pictures."""

FLOW = {"optical_flow_cadence": "DIS Medium", "seed_behavior": "random"}


@pytest.mark.parametrize(
    ("cadence", "more", "compat"),
    [
        (1, {}, "fixed"),
        (3, FLOW, "fixed"),
        pytest.param(3, {}, "fixed", marks=pytest.mark.slow),
        pytest.param(1, {}, "deforum-3.0", marks=pytest.mark.slow),
        pytest.param(3, FLOW, "deforum-3.0", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_frame_and_resumed_is_the_same(animate, tmp_path, cadence, more, compat):
    video = tmp_path / "video"
    video.mkdir()
    for number in range(FRAMES):
        Image.fromarray(random_picture(40, 32, number // 4)).save(video / f"{number:03}.png")
    settings = CARRIED | more | {"diffusion_cadence": cadence, "video_init_path": str(video)}
    recipe = {"compat": compat}

    def killed(frame):
        """What SIGKILL leaves when a frame is about to be saved."""
        shutil.copytree(tmp_path / "whole", tmp_path / f"killed{frame}")

    animate(SeededGenerator(), "whole", show=killed, recipe=recipe, **settings)
    whole = {path.name: path.read_bytes() for path in animate.last.run.frames()}
    assert len(whole) == (FRAMES if compat == "fixed" or cadence == 1 else FRAMES - cadence)
    assert len(set(whole.values())) == len(whole)
    for frame in range(len(whole)):
        again = {"recipe": recipe | {"resume": True}, **settings}
        left = len(list((tmp_path / f"killed{frame}").rglob(f"*_{'[0-9]' * 9}.png")))
        assert left == frame
        animate(SeededGenerator(), f"killed{frame}", **again)
        resumed = {path.name: path.read_bytes() for path in animate.last.run.frames()}
        assert resumed == whole, f"killed at frame {frame}"
