"""Processes that compute each clip together train and draw the same as one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from inference.media import read_clip
from tests.inference.models.cogvideox.models import make_video_model, write_video_folder
from tests.train.run_tools import largest_difference, succeed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 2}",
    "sampling={sample_every_n_steps: 2, clips: {one: {prompt: red}}}",
    "data={flip: 0.5}",
    "data.captions.dropout_rate=0.3",
    "validation={split: 0.25, every_n_steps: 2}",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
]

LORA = "objective={type: lora, rank: 2}"

ROUNDING = 2e-6
"""Of sums in another order, through four steps; the weights are up to 1, the steps 0.01 each."""

RECIPES = {
    "text": [],
    "recomputed": ["gradient_checkpointing=true", "memory.activation_offload=true"],
    "whole model": ["objective={type: text_to_image}"],
    "packed": [
        "data.clips={frames: 49, height: null, width: null, buckets: [9x32x32, 17x32x32]}",
        "data.clips.pack=true",
    ],
    "bf16": ["mixed_precision=bf16", "base_model.quantization=int8"],
    "eager": ["base_model.attention=eager"],
    "image": ["base_model.path={image_to_video}", "sampling.clips.one.image={picture}"],
}


def train(commands: Any, count: int, *options: str) -> list[Any]:
    """Train on so many processes, which the first one's folder shows."""
    first = commands.two_ranks()[0]
    ranks = [
        {**first, "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(count)
    ]
    return commands.run("train", [str(commands.recipe), *options], ranks, None)


def losses(run: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows of losses and gradients."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "logs"))
    board.Reload()
    return [
        (event.step, tag, event.value)
        for tag in board.Tags()["scalars"]
        if "loss" in tag or tag == "gradient_norm"
        for event in board.Scalars(tag)
    ]


def options_of(kind: str, folder: Path, image_to_video: Path, pictures: Path) -> list[str]:
    picture = sorted(pictures.glob("*.png"))[0]
    filled = [
        one.replace("{image_to_video}", str(image_to_video)).replace("{picture}", str(picture))
        for one in RECIPES[kind]
    ]
    objective = [] if kind == "whole model" else [LORA]
    return [f"output_dir={folder}", *OPTIONS, *objective, *filled]


@pytest.mark.parametrize("kind", RECIPES)
def test_two_processes_train_as_one(
    kind: str, clip_commands: Any, tmp_path: Path, image_to_video_folder: Path, pictures: Path
) -> None:
    options = options_of(kind, tmp_path, image_to_video_folder, pictures)
    two = clip_commands.train_on_two(*options, "name=two", "parallel.context=2")
    succeed(two)
    assert (two[1].out, two[1].err) == ("", "")
    one = clip_commands.train(*options, "name=one")
    assert one.status == 0, one.err
    tolerance = 2e-3 if kind == "bf16" else ROUNDING
    assert largest_difference(tmp_path / "one", tmp_path / "two") < tolerance
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [place[:2] for place in ours] == [place[:2] for place in theirs]
    np.testing.assert_allclose(
        [place[2] for place in theirs],
        [place[2] for place in ours],
        rtol=2e-2 if kind == "bf16" else 2e-5,
    )


def test_shares_of_weights_and_of_a_clip_together(clip_commands: Any, tmp_path: Path) -> None:
    """FSDP2 within a context group trains as DDP does."""
    options = [f"output_dir={tmp_path}", LORA, *OPTIONS, "saving.save_precision=fp32"]
    for name, strategy in (("ddp", "ddp"), ("shares", "fsdp")):
        parallel = f"parallel={{strategy: {strategy}, context: 2}}"
        succeed(clip_commands.train_on_two(*options, f"name={name}", parallel))
    ours, theirs = (
        load_file(tmp_path / name / "artifacts" / "step-000004.safetensors")
        for name in ("ddp", "shares")
    )
    assert ours.keys() == theirs.keys()
    assert max(float((ours[one] - theirs[one]).abs().max()) for one in ours) < ROUNDING


def test_two_groups_of_two_train_as_two_processes(clip_commands: Any, tmp_path: Path) -> None:
    options = [f"output_dir={tmp_path}", LORA, *OPTIONS]
    succeed(train(clip_commands, 4, *options, "name=four", "parallel.context=2"))
    succeed(clip_commands.train_on_two(*options, "name=two"))
    assert largest_difference(tmp_path / "two", tmp_path / "four") < ROUNDING


def test_a_run_goes_on_with_another_number(clip_commands: Any, tmp_path: Path) -> None:
    """Begun by two processes together, continued by four, ended by one."""
    base = write_video_folder(make_video_model(num_attention_heads=4), tmp_path / "base")
    options = [f"output_dir={tmp_path}", f"base_model.path={base}", LORA, *OPTIONS]
    resumed = [*options, "name=resumed", "saving.save_every_n_steps=1"]
    succeed(train(clip_commands, 2, *resumed, "parallel.context=2", "max_train_steps=1"))
    more = ["resume=true", "max_train_steps=4"]
    succeed(train(clip_commands, 4, *resumed, "parallel.context=4", *more))
    last = clip_commands.train(*resumed, "resume=true")
    assert last.status == 0, last.err
    one = clip_commands.train(*options, "name=one")
    assert one.status == 0, one.err
    assert largest_difference(tmp_path / "one", tmp_path / "resumed") < ROUNDING


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["parallel.context=3"], "parallel.context: 3 processes compute a clip together, which"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    options: list[str], message: str, clip_commands: Any, tmp_path: Path
) -> None:
    ranks = clip_commands.train_on_two(f"output_dir={tmp_path}", *OPTIONS, *options)
    assert [rank.status for rank in ranks] == [2, 2]
    assert message in ranks[0].err + ranks[1].err


def test_pictures_are_refused(commands: Any, tmp_path: Path) -> None:
    ranks = commands.train_on_two(f"output_dir={tmp_path}", "parallel.context=2")
    assert [rank.status for rank in ranks] == [2, 2]
    assert "train: parallel.context: is for the frames of video models" in ranks[0].err


CLIPS = """
type: clip
base_model: {path: picto-motion}
settings: {steps: 4, cfg_scale: 4}
clips: {cat: {prompt: "cat face, twemoji style, moving right", seed: 1}}
formats: [webp]
"""


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["drop_learned_positions=true", "settings.frames=9", "settings.sampler=Euler a"],
        ["cache=pab"],
        ["cache=faster_cache"],
        ["drop_learned_positions=true", "settings={frames: 25, window: 9, steps: 2}"],
    ],
    ids=["plain", "other frames", "pab", "faster_cache", "window"],
)
def test_processes_draw_the_clips_of_one(options: list[str], commands: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "clips.yaml"
    recipe.write_text(CLIPS)
    one = commands.draw(recipe, f"output_dir={tmp_path}/one", *options)
    assert one.status == 0, one.err
    two = commands.draw_on_two(recipe, f"output_dir={tmp_path}/two", "parallel.context=2", *options)
    succeed(two)
    assert two[0].out.replace("/two/", "/one/") == one.out
    assert (two[1].out, two[1].err) == ("", "")
    for file in sorted((tmp_path / "one").glob("*.webp")):
        ours, theirs = (
            read_clip(folder / file.name).frames.astype(int)
            for folder in (tmp_path / "one", tmp_path / "two")
        )
        assert ours.std() > 1
        assert np.abs(ours - theirs).max() <= 1, file.name


def torchrun(count: int, *command: str) -> None:
    """Run one of the commands on so many processes of the CPU, as users do."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, f"--nproc_per_node={count}", "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_torchrun_trains_picto_motion(commands: Any, tmp_path: Path) -> None:
    """A demo, begun by two processes together, resumed by four; then its LoRA is drawn by two."""
    clips = "{dog: null, rabbit: null, banana: null, rocket: null, left: null, up: null}"
    recipe = [
        "configs/demo/octopus_clip_lora.yaml",
        f"output_dir={tmp_path}",
        "mixed_precision=fp32",
        "optimizer.epsilon=1e-3",
        "lr_scheduler={type: constant, warmup_steps: 0}",
        "max_train_steps=4",
        "train_batch_size=1",
        f"sampling={{clip_settings: {{steps: 1}}, clips: {clips}, sample_every_n_steps: 9}}",
        "sampling.clips.bouncing=null",
    ]
    torchrun(2, "train", *recipe, "name=four", "parallel.context=2", "max_train_steps=2")
    torchrun(4, "train", *recipe, "name=four", "parallel.context=4", "resume=true")
    one = commands.run("train", [*recipe, "name=one"], [{}], None)[0]
    assert one.status == 0, one.err
    assert largest_difference(tmp_path / "one", tmp_path / "four") < 1e-4
    lora = tmp_path / "four" / "artifacts" / "last.safetensors"
    written = tmp_path / "clips.yaml"
    written.write_text(CLIPS)
    drawn = [str(written), f"artifacts.own.path={lora}", "settings.steps=2", "device=cpu"]
    torchrun(2, "inference", *drawn, f"output_dir={tmp_path}/two", "parallel.context=2")
    alone = commands.draw(*drawn, f"output_dir={tmp_path}/alone")
    assert alone.status == 0, alone.err
    (ours,), (theirs,) = (
        [read_clip(file).frames.astype(int) for file in (tmp_path / name).glob("*.webp")]
        for name in ("alone", "two")
    )
    assert np.abs(ours - theirs).max() <= 1
