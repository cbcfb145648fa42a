# SPDX-License-Identifier: Apache-2.0
"""How often the host waits for the GPU: in a training step, and in a step of each sampler.

A wait in every step keeps the GPU idle while the host prepares the next one. On the mock device,
which records each wait with its place.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.config import BaseModelConfig, ImageConfig
from inference.images import draw
from inference.models.stable_diffusion import load_base_model
from inference.sampling import samplers_of
from tests.gpu import mock_cuda
from tests.gpu.test_first_gpu_run import OBJECTIVES
from tests.inference.models.cogvideox.models import make_video_model, write_video_folder
from train.config import TrainRecipe
from train.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(mock_cuda.ext is None, reason="the mock device records waits"),
]

AFTER_STEPS = (3, 7)
"""What a run does once, it does outside of these."""
MOST = 3
"""Waits of a step; one of them reads losses and the gradients' norm."""

SETTINGS: dict[str, list[str]] = {
    "lora_bf16": ["mixed_precision=bf16"],
    "lora_fp16": ["mixed_precision=fp16"],
    "logs": ["mixed_precision=bf16", "log_every_n_steps=1"],
    "min_snr": ["loss={weighting: min_snr, timestep_sampling: stratified, noise_offset: 0.1}"],
    "accumulate": ["gradient_accumulation_steps=2", "train_batch_size=1"],
    "text_encoder": [*OBJECTIVES["lora_text"], "mixed_precision=bf16"],
    "textual_inversion": OBJECTIVES["textual_inversion"],
    "full_ema": OBJECTIVES["text_to_image"],
    "autoencoder": OBJECTIVES["autoencoder"],
    "flip": ["data.flip=0.5"],
    "uncached": ["data.cache=off", "data.latent_sampling=random"],
    "disk": ["data.cache=disk"],
    "clip_value": ["max_grad_value=0.1", "mixed_precision=fp16"],
    "skips": ["guards.non_finite=skip"],
    "empty_prompts": ["data.captions={dropout_rate: 0.5, dropout_mode: zero_embedding}"],
}


CLIP_SETTINGS: dict[str, list[str]] = {
    "cached": ["mixed_precision=bf16"],
    "uncached": ["data.latent_sampling=random", "data.cache=off"],
    "first_frames": ["image_condition={noise: true, dropout_rate: 0.5}"],
    "packed": ["data.clips={buckets: ['9x32x32', '17x32x32'], short_clips: skip, pack: true}"],
}


@pytest.fixture
def recorded() -> Iterator[None]:
    """Record waits during a test."""
    mock_cuda.SYNCS.clear()
    mock_cuda.record_syncs()
    yield
    mock_cuda.record_syncs(False)
    mock_cuda.SYNCS.clear()


def waits_of_a_step(recipe: TrainRecipe) -> dict[str, float]:
    """Return the waits of a training step by place, each with its average."""
    trainer = Trainer(recipe)
    update, marks = trainer.update_weights, []

    def update_and_mark() -> Any:
        norm = update()
        marks.append(len(mock_cuda.SYNCS))
        return norm

    trainer.update_weights = update_and_mark
    trainer.train()
    first, last = (marks[step - 1] for step in AFTER_STEPS)
    counted = Counter(f"{one[0]} {one[1]} {one[3]}" for one in mock_cuda.SYNCS[first:last])
    steps = AFTER_STEPS[1] - AFTER_STEPS[0]
    return {place: count / steps for place, count in counted.items()}


def check(recipe: TrainRecipe) -> None:
    waits = waits_of_a_step(recipe)
    assert 1 <= sum(waits.values()) <= MOST, waits


@pytest.fixture
def bare(make_recipe: Callable[..., TrainRecipe]) -> Callable[..., TrainRecipe]:
    """The tiny recipe, which draws and saves nothing between its steps."""
    still = ["log_every_n_steps=100", "sampling.sample_every_n_steps=100", "max_train_steps=8"]
    return lambda *overrides: make_recipe(*still, *overrides)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", SETTINGS)
def test_training_waits_at_most_three_times_a_step(
    name: str, bare: Callable[..., TrainRecipe]
) -> None:
    check(bare(*SETTINGS[name]))


@pytest.mark.usefixtures("recorded")
def test_training_with_masks(
    bare: Callable[..., TrainRecipe], pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "masked"
    shutil.copytree(pictures, folder)
    for file in folder.glob("*.png"):
        image = Image.open(file).convert("RGBA")
        image.putalpha(Image.new("L", image.size, 128))
        image.save(file)
    check(bare(f"data.path={folder}", "data.masks={source: alpha}"))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("prior", ["class_images", "prediction"])
def test_training_with_prior_pictures(
    prior: str, bare: Callable[..., TrainRecipe], pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "class"
    shutil.copytree(pictures, other)
    subsets = f"data.subsets={{own: {{path: {pictures}}}, class: {{path: {other}, is_reg: true}}}}"
    check(bare("data.path=null", subsets, f"loss.prior={prior}"))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", CLIP_SETTINGS)
def test_training_with_clips(
    name: str, make_clip_recipe: Callable[..., TrainRecipe], tmp_path: Path
) -> None:
    overrides = CLIP_SETTINGS[name]
    if name == "first_frames":
        folder = write_video_folder(make_video_model("1.5_i2v"), tmp_path / "base")
        overrides = [*overrides, f"base_model.path={folder}"]
    still = ["log_every_n_steps=100", "sampling.sample_every_n_steps=100", "max_train_steps=8"]
    check(make_clip_recipe(*still, *overrides))


@pytest.mark.usefixtures("recorded")
def test_drawing_does_not_wait_in_its_steps(tiny_base_folder: Path) -> None:
    """Samplers of any kind, and as many steps more: only the adaptive one reads its own error."""
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)), "bf16", "cuda")
    waits: dict[str, list[int]] = {}
    for name in samplers_of("pictures"):
        for steps in (4, 7):
            mock_cuda.SYNCS.clear()
            image = {"prompt": "a cat", "negative_prompt": "dog", "width": 16, "height": 16}
            draw(base, [ImageConfig(**image, seed=1, steps=steps, sampler=name)])
            waits.setdefault(name, []).append(len(mock_cuda.SYNCS))
    more = {name: longer - shorter for name, (shorter, longer) in waits.items()}
    assert {name for name, count in more.items() if count} <= {"DPM adaptive"}, more
