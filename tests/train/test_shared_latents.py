"""Processes of a context group cache the latents that one process caches, and draw its clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.media import read_clip
from tests.train.run_tools import succeed

pytestmark = pytest.mark.slow

LORA = "objective={type: lora, rank: 2}"
LONG = "data.clips={frames: 17, height: 32, width: 32, short_clips: loop}"

CLIPS = """
type: clip
base_model: {path: picto-motion}
drop_learned_positions: true
settings: {steps: 3, cfg_scale: 4, frames: 33}
clips:
  cat: {prompt: "cat face, twemoji style, moving right", seed: 1}
  car: {prompt: "automobile, twemoji style", seed: 2, frames: 9}
formats: [webp]
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every entry of a cache."""
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")
    }


def test_the_entries_of_a_cache_are_the_same_bytes(clip_commands: Any, tmp_path: Path) -> None:
    options = [f"output_dir={tmp_path}", LORA, LONG, "max_train_steps=1", "data.cache=disk"]
    one = clip_commands.train(*options, "name=one", f"data.cache_dir={tmp_path}/one_cache")
    assert one.status == 0, one.err
    together = ["parallel.context=2", "name=two", f"data.cache_dir={tmp_path}/two_cache"]
    succeed(clip_commands.train_on_two(*options, *together))
    ours, theirs = contents(tmp_path / "one_cache"), contents(tmp_path / "two_cache")
    assert len(ours) > 2
    assert theirs == ours


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["vae_tiling=true", "settings={frames: 17, height: 96, width: 96}"],
        ["clips.car.video={source}", "clips.car.strength=0.7", "clips.car.frames=25"],
    ],
    ids=["text", "tiles", "video"],
)
def test_clips_are_drawn_together(options: list[str], commands: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "clips.yaml"
    recipe.write_text(CLIPS)
    source = tmp_path / "source"
    if any("{source}" in option for option in options):
        made = commands.draw(recipe, f"output_dir={source}")
        assert made.status == 0, made.err
    given = [option.replace("{source}", f"{source}/00000-1.webp") for option in options]
    one = commands.draw(recipe, f"output_dir={tmp_path}/one", *given)
    assert one.status == 0, one.err
    two = commands.draw_on_two(recipe, f"output_dir={tmp_path}/two", "parallel.context=2", *given)
    succeed(two)
    assert two[0].out.replace("/two/", "/one/") == one.out
    assert (two[1].out, two[1].err) == ("", "")
    for file in sorted((tmp_path / "one").glob("*.webp")):
        ours, theirs = (
            read_clip(folder / file.name).frames.astype(int)
            for folder in (tmp_path / "one", tmp_path / "two")
        )
        assert ours.shape == theirs.shape
        assert ours.std() > 1
        assert np.abs(ours - theirs).max() <= 1, file.name


def test_a_trained_vae_is_refused(commands: Any, tmp_path: Path) -> None:
    options = ["objective={type: autoencoder}", "parallel.context=2", f"output_dir={tmp_path}"]
    done = commands.train(*options)
    assert done.status == 2
    assert "parallel.context: processes share clips with a frozen VAE alone" in done.err
