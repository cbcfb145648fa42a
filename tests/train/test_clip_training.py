"""Training on clips: what is drawn is what is saved, two processes are one, what a person sees."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.inspect import inspect
from inference.media.grid import grid_cells
from inference.media.video_reading import read_clip
from inference.recipe.loader import RecipeWarning
from tests.train.run_tools import largest_difference, succeed
from train.config.recipe import TrainRecipe
from train.monitoring.run import Run
from train.monitoring.tracking import StepClock
from train.trainer import Trainer

ROOT = Path(__file__).parents[2]

CLIPS = [
    "sampling.clips.one={prompt: red, seed: 3, negative_prompt: lime}",
    "sampling.clips.two={prompt: 'lime, up', seed: 4, frames: 17, height: 32, sampler: dpm}",
]
DRAWING = """
type: clip
base_model: {{path: {base}}}
settings: {{steps: 2, frames: 9, height: 16, width: 16}}
clips:
  one: {{prompt: red, seed: 3, negative_prompt: lime}}
  two: {{prompt: "lime, up", seed: 4, frames: 17, height: 32, sampler: dpm}}
formats: [webp]
contact_sheet: false
"""
SLOW = pytest.mark.slow
LORA = "objective={type: lora, rank: 2, dropout: 0.2}"


@pytest.fixture(scope="session")
def drawing_recipe(clip_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawing") / "clips.yaml"
    path.write_text(DRAWING.format(base=clip_recipe_file.with_name("tiny-video")))
    return path


def drawn(done: Any) -> list[np.ndarray]:
    assert done.status == 0, done.err
    return [read_clip(Path(path)).frames for path in done.out.split()]


def grid_clips(folder: Path) -> list[np.ndarray]:
    return [read_clip(path).frames for path in sorted(folder.glob("*.webp"))]


def same(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        ["objective={type: lora, rank: 4, alpha: 8, comfyui_twin: true}"],
        pytest.param([LORA, "ema={decay: 0.5}", "mixed_precision=bf16"], marks=SLOW),
        pytest.param(["objective={type: text_to_image}", "ema={decay: 0.5}"], marks=SLOW),
    ],
    ids=["lora", "lora ema bf16", "text_to_image ema"],
)
def test_last_clips_are_what_a_new_process_draws(
    options: list[str], clip_commands: Any, drawing_recipe: Path, tmp_path: Path
) -> None:
    """Frame for frame, from all files of what was learned; and the base row is the base model's."""
    done = clip_commands.train(f"output_dir={tmp_path}", *options, *CLIPS)
    assert done.status == 0, done.err
    samples = tmp_path / "run" / "samples"
    last = grid_clips(samples / "step-000004")
    assert [clip.shape for clip in last] == [(9, 16, 16, 3), (17, 32, 16, 3)]
    precision = "precision=bf16" if "mixed_precision=bf16" in options else "precision=fp32"
    artifacts = sorted((tmp_path / "run" / "artifacts").glob("last*"))
    assert len(artifacts) == 1 + ("twin" in options[0])
    to = f"output_dir={tmp_path / 'out'}"
    for path in artifacts:
        arguments = [precision, to, f"artifacts.it.path={path}"]
        assert same(drawn(clip_commands.draw(drawing_recipe, *arguments)), last), path
    base = grid_clips(samples / "base")
    assert not same(base[:1], last[:1])
    if len(artifacts) == 1:
        assert same(drawn(clip_commands.draw(drawing_recipe, precision, to)), base)
    with Image.open(samples / "step-000004.png") as sheet:
        assert np.array_equal(np.asarray(grid_cells(sheet)[2][0]), last[0][0])
    assert len(read_clip(samples / "step-000004.webp").frames) == 17


def test_a_picture_is_told_on_the_scale_of_training(
    clip_commands: Any,
    drawing_recipe: Path,
    image_to_video_folder: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    image = pictures / "0-red.png"
    base = f"base_model.path={image_to_video_folder}"
    options = [base, LORA, "image_condition.latent_scale=raw", *CLIPS[:1]]
    to = f"output_dir={tmp_path}"
    done = clip_commands.train(to, *options, f"sampling.clips.one.image={image}")
    assert done.status == 0, done.err
    run = tmp_path / "run"
    drawing = [base, "clips.two=null", f"clips.one.image={image}", f"output_dir={tmp_path}/out"]
    drawing.append(f"artifacts.it.path={run}/artifacts/last.safetensors")
    scaled = drawn(clip_commands.draw(drawing_recipe, *drawing, "image_latent_scale=raw"))
    assert same(scaled, grid_clips(run / "samples" / "step-000004"))
    assert not same(drawn(clip_commands.draw(drawing_recipe, *drawing)), scaled)


@pytest.mark.slow
def test_clips_of_the_real_command(
    make_clip_recipe: Callable[..., TrainRecipe], drawing_recipe: Path, tmp_path: Path
) -> None:
    trainer = Trainer(make_clip_recipe(LORA, *CLIPS))
    artifact = trainer.train()
    command = [sys.executable, "-m", "inference", str(drawing_recipe), f"output_dir={tmp_path}/out"]
    done = subprocess.run(
        [*command, f"artifacts.it.path={artifact}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    found = [read_clip(Path(path)).frames for path in done.stdout.split()]
    assert same(found, grid_clips(trainer.run.folder.samples / "step-000004"))


# Two processes


TWO_RANKS = {
    "stages": [
        "stages.small={steps: 2, height: 16, width: 16, train_batch_size: 3}",
        "stages.large={steps: 2, frames: 8}",
        "data.clips.part=random",
    ],
    "packed": [
        "data.clips={frames: 49, height: null, width: null, buckets: [9x32x32, 17x32x32]}",
        "data.clips.pack=true",
    ],
}


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW) for one in ("stages", "packed")])
def test_two_processes_equal_twice_the_accumulation(
    name: str, clip_commands: Any, tmp_path: Path
) -> None:
    options = [f"output_dir={tmp_path}", LORA, *TWO_RANKS[name], "data.captions.dropout_rate=0.3"]
    options += ["ema={decay: 0.8}", "optimizer.epsilon=1e-4"]
    succeed(clip_commands.train_on_two(*options, "name=two", "gradient_accumulation_steps=1"))
    one = clip_commands.train(*options, "name=one", "gradient_accumulation_steps=2")
    assert one.status == 0, one.err
    difference = largest_difference(tmp_path / "one", tmp_path / "two")
    print(f"largest difference: {difference:.1e}")
    assert difference < 2e-6


# What a person sees


class SteadyClock(StepClock):
    def take(self) -> float:
        return 2.0


class SteadyRun(Run):
    """Two seconds between any two entries."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.clock = SteadyClock()


def test_board_of_clips(make_clip_recipe: Callable[..., TrainRecipe]) -> None:
    recipe = make_clip_recipe(
        LORA,
        *CLIPS,
        "sampling.clips.two.fps=16",
        "stages.small={steps: 1, height: 16, width: 16, train_batch_size: 4}",
        "stages.large={steps: 3}",
        "log_every_n_steps=2",
        "sampling.sample_every_n_steps=2",
        "optimizer.learning_rates.transformer=1e-3",
    )
    trainer = Trainer(recipe, run=SteadyRun)
    artifact = trainer.train()
    events = EventAccumulator(str(trainer.run.folder.logs))
    events.Reload()
    bands = {f"loss_by_timestep/{band}" for band in ("000-249", "250-499", "500-749", "750-999")}
    named = {"loss", "gradient_norm", "images_per_second", "learning_rate/transformer"}
    assert set(events.Tags()["scalars"]) == named | bands
    speeds = [(e.step, e.value) for e in events.Scalars("images_per_second")]
    assert speeds == [(1, 2), (2, 1), (4, 2)]  # 4 clips, 2, then 2 x 2, in two seconds each
    # Four strata of four clips in step 1: one of them in every band.
    assert all(events.Scalars(band)[0].step == 1 for band in bands)
    mean = np.mean([events.Scalars(band)[0].value for band in bands])
    assert events.Scalars("loss")[0].value == pytest.approx(mean, rel=1e-5)
    assert [image.step for image in events.Images("grid")] == [2, 4]
    shown = events.Images("clips")
    assert [image.step for image in shown] == [2, 4]
    gif = Image.open(io.BytesIO(shown[1].encoded_image_string))
    animation = read_clip(trainer.run.folder.samples / "step-000004.webp").frames
    assert gif.format == "GIF"
    assert (gif.n_frames, gif.height, gif.width) == animation.shape[:3]  # type: ignore[attr-defined]
    assert len(animation) == 17
    assert (shown[1].height, shown[1].width) == animation.shape[1:3]
    assert inspect(artifact)["ss_unet_lr"] == "0.001"


def test_noise_offset_is_one_of_a_channel_in_all_frames(
    make_clip_recipe: Callable[..., TrainRecipe],
) -> None:
    """Without it the noise is the same apart from that."""
    noises = []
    for offset in (0.0, 0.5):
        denoising = Trainer(
            make_clip_recipe(LORA, f"name=offset{offset}", f"loss.noise_offset={offset}")
        ).objective.denoising
        noises.append(denoising.noise([3, 4], torch.zeros(2, 3, 4, 2, 2)))
    offsets = noises[1] - noises[0]
    assert torch.allclose(offsets, offsets[:, :1, :, :1, :1].expand_as(offsets), atol=1e-6)
    assert len(offsets[:, 0, :, 0, 0].unique()) == 8


def test_captions_that_are_not_read_to_their_ends_are_told(make_clip_recipe: Any) -> None:
    recipe = make_clip_recipe(LORA, "data.captions.suffix=' lime lime'", "max_train_steps=1")
    with pytest.warns(RecipeWarning, match=r"\d of \d prompts have more than the \d+ tokens"):
        Trainer(recipe).train()
