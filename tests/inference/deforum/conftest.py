"""Animations without a model: a few settings in, the frames out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.config.recipes import AnimationRecipe
from inference.deforum.animation import Animation
from inference.deforum.loop.generator import IdentityGenerator

PLAIN = {
    "W": 64,
    "H": 64,
    "seed": 10,
    "max_frames": 6,
    "zoom": "0:(1)",
    "translation_z": "0:(0)",
    "noise_schedule": "0:(0)",
    "amount_schedule": "0:(0)",
    "strength_schedule": "0:(0.6)",
    "color_coherence": "None",
    "diffusion_cadence": 1,
    "skip_video_creation": True,
    "depth_model": "none",
    "batch_name": "run",
    "prompts": {"0": "a cat"},
}
"""Nothing moves and nothing is added."""


@pytest.fixture
def animate(tmp_path):
    """A function that draws an animation; returns its frames, uint8 (n, h, w, 3)."""

    def draw(generator=None, folder="out", estimator=None, show=None, recipe=None, **settings):
        own = {
            "output_dir": str(tmp_path / folder),
            "contact_sheet": False,
            "subtitles": False,
            "preset": "ultrafast",
        }
        made = AnimationRecipe(settings=PLAIN | settings, **(own | (recipe or {})))
        animation = Animation(made, estimator=estimator)
        animation.prepare()
        if show is not None:
            kept = animation.show

            def shown(frame: int, picture: Any) -> None:
                show(frame)
                kept(frame, picture)

            animation.show = shown
        animation.draw(generator or IdentityGenerator(), log=lambda text: None)
        vars(draw)["last"] = animation
        return pictures(animation.run)

    return draw


def pictures(run):
    """The frames of a run's folder."""
    return np.stack([np.asarray(Image.open(path)) for path in run.frames()])
