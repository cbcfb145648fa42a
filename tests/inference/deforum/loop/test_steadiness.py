"""Frames are steadier with `fixed` than with `deforum-3.0`, on the same settings."""

import numpy as np
import pytest
from PIL import Image

from inference.deforum.loop.generator import IdentityGenerator, random_picture
from inference.deforum.products.finishing import figures

MOTIONS = {
    "2D": {
        "animation_mode": "2D", "zoom": "0:(1 + 0.01*cos(pi*t/6))", "angle": "0:(2*cos(pi*t/6))",
    },
    "3D": {
        "animation_mode": "3D", "translation_z": "0:(3*cos(pi*t/6))",
        "rotation_3d_y": "0:(0.5*cos(pi*t/6))", "rotation_3d_z": "0:(2*cos(pi*t/6))",
    },
}  # fmt: skip
"""The camera swings and comes back every 12 frames, so that what drifts is lost."""

FRAMES = 25


@pytest.mark.parametrize(
    ("mode", "colors"),
    [
        ("2D", "LAB"),
        ("3D", "None"),
        *(
            pytest.param(mode, colors, marks=pytest.mark.slow)
            for mode, colors in (("2D", "None"), ("2D", "HSV"), ("3D", "LAB"), ("3D", "HSV"))
        ),
    ],
)
def test_fixed_is_steadier(animate, mode, colors):
    found = {}
    for compat in ("fixed", "deforum-3.0"):
        settings = MOTIONS[mode] | {"color_coherence": colors, "max_frames": FRAMES}
        animate(IdentityGenerator(), compat, recipe={"compat": compat}, **settings)
        found[compat] = figures(animate.last.script, animate.last.run)
    ours, theirs = found["fixed"], found["deforum-3.0"]
    assert ours.warp_error < theirs.warp_error
    assert ours.largest_drift.mean < theirs.largest_drift.mean
    if colors != "None" or mode == "3D":  # bilinear sampling fades in both
        assert ours.largest_drift.deviation < theirs.largest_drift.deviation


def test_what_a_video_moves_is_no_error(animate, tmp_path):
    picture = random_picture(64, 64, 0)
    for number in range(4):
        moved = Image.fromarray(np.roll(picture, 2 * number, axis=1))
        moved.save(tmp_path / f"{number}.png")
    settings = {"hybrid_motion": "Optical Flow", "hybrid_flow_method": "DIS Fine"}
    animate(IdentityGenerator(picture), video_init_path=str(tmp_path), **settings)
    error = figures(animate.last.script, animate.last.run).warp_error
    assert error is not None and error < 1e-3
