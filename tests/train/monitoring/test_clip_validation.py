"""Validation with clips: what is measured, however they are packed, staged or conditioned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference.models.cogvideox.model import VideoModel
from tests.train.run_tools import largest_difference, losses_by_hand
from train.config.recipe import TrainRecipe
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]

LORA = "objective={type: lora, rank: 2, dropout: 0.3}"
ANY_SIZE = "data.clips={frames: 49, height: null, width: null, buckets: [9x32x32, 17x32x32]}"


@pytest.fixture
def others(clips: Path, tmp_path: Path) -> Path:
    """Three clips to validate with; one is longer."""
    folder = tmp_path / "others"
    folder.mkdir()
    for name in ("lime-down", "lime-left", "red-up"):
        for file in clips.glob(f"{name}.*"):
            shutil.copy(file, folder / f"other-{file.name}")
    return folder


@pytest.fixture
def trainer(make_clip_recipe: MakeRecipe, others: Path) -> Callable[..., Trainer]:
    def make(*overrides: str) -> Trainer:
        made = Trainer(make_clip_recipe(f"validation.path={others}", "seed=3", LORA, *overrides))
        made.validation.fill(lambda sequence, _: sequence)
        return made

    return make


def test_losses_by_hand(trainer: Callable[..., Trainer]) -> None:
    """The velocity's plain mean squared error, of the middle of each clip."""
    made = trainer("data.clips.part=random", "data.captions.dropout_rate=0.5")
    validation, base = made.validation, made.base
    assert isinstance(base, VideoModel)
    losses = validation.measure(step=0)
    assert losses.shape == (3, 4)
    expected = losses_by_hand(
        validation,
        base,
        lambda latents, noise, alpha: alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
    )
    assert losses.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-4)


def test_packed_clips_lose_what_they_lose_alone(trainer: Callable[..., Trainer]) -> None:
    """Of two lengths; neither packing nor the cache changes what is measured."""
    losses = []
    for number, overrides in enumerate(([], ["data.clips.pack=true"], ["data.cache=off"])):
        validation = trainer(ANY_SIZE, f"name=run{number}", *overrides).validation
        shapes = sorted(validation.examples.shape(index) for index in range(3))
        assert shapes == [(9, 32, 32), (9, 32, 32), (17, 32, 32)]
        losses.append(validation.measure(0))
    assert torch.allclose(losses[1], losses[0], rtol=1e-4)
    assert torch.allclose(losses[2], losses[0], rtol=1e-4)
    assert len(losses[0].unique()) == losses[0].numel()


def test_stages_are_measured_at_the_size_of_the_last(trainer: Callable[..., Trainer]) -> None:
    validation = trainer(
        "stages.small={steps: 2, height: 16, width: 16, train_batch_size: 3}",
        "stages.large={steps: 2, frames: 8}",
    ).validation
    assert {validation.examples.shape(index) for index in range(3)} == {(8, 32, 32)}
    assert validation.batch_size == 2


def test_told_pictures_are_always_the_same(
    trainer: Callable[..., Trainer], image_to_video_folder: Path
) -> None:
    """Noise and dropout of the first frame follow the clip's name, not the run or the step."""
    condition = "image_condition={noise: true, dropout_rate: 0.5}"
    base = f"base_model.path={image_to_video_folder}"
    losses = []
    for number, overrides in enumerate(([], ["seed=7"], ["image_condition.noise=false"])):
        validation = trainer(base, condition, f"name=run{number}", *overrides).validation
        losses.append(validation.measure(0))
        assert torch.equal(validation.measure(3), losses[-1])
    assert torch.equal(losses[1], losses[0])
    assert not torch.equal(losses[2], losses[0])


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param([], id="plain", marks=pytest.mark.slow),
        pytest.param([ANY_SIZE, "data.clips.pack=true"], id="packed", marks=pytest.mark.slow),
    ],
)
def test_training_is_not_disturbed(
    shape: list[str], make_clip_recipe: MakeRecipe, others: Path, tmp_path: Path
) -> None:
    usual = [LORA, "ema={}", "data.captions.dropout_rate=0.3", *shape]
    validation = f"validation={{path: {others}, every_n_steps: 2}}"
    Trainer(make_clip_recipe("name=plain", *usual)).train()
    Trainer(make_clip_recipe("name=watched", validation, *usual)).train()
    Trainer(make_clip_recipe("name=cut", validation, "max_train_steps=2", *usual)).train()
    Trainer(make_clip_recipe("name=cut", validation, "resume=true", *usual)).train()
    plain, watched, cut = (tmp_path / name for name in ("plain", "watched", "cut"))
    assert largest_difference(plain, watched) == 0
    assert largest_difference(cut, watched) == 0
