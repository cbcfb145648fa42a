"""Clips in one row lose what they lose by themselves, and teach as much."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.models.conditions import Conditions
from inference.runtime.errors import InputError
from tests.inference.models.cogvideox.models import make_video_model
from train.common.batch import Batch
from train.common.errors import DataError
from train.config.checks import recipe_idle
from train.config.clips import ClipDataConfig, ImageConditionConfig
from train.config.recipe import LossConfig, TrainRecipe
from train.config.stages import StageConfig
from train.data.examples.loader import build_loader, collate
from train.families.cogvideox.clips import ClipDenoising
from train.families.cogvideox.packed import PackedDenoising, single
from train.trainer import Trainer

FRAMES = (9, 1, 17)
PACKED = [
    "data.clips={frames: 49, height: null, width: null, buckets: [9x32x32, 17x32x32]}",
    "data.clips.pack=true",
    "train_batch_size=4",
]


def batch(first: int = 6, frames: tuple[int, ...] = FRAMES) -> Batch:
    source = torch.Generator().manual_seed(4)
    clips = [torch.rand(3, count, 32, 32, generator=source) * 2 - 1 for count in frames]
    count = len(clips)
    return {
        "step": 0,
        "step_size": 2 * count,
        "first_position": 0,
        "positions": [*range(first, first + count)],
        "indices": [*range(count)],
        "names": ["x"] * count,
        "weight": torch.ones(count),
        "prompts": ["a", "", "c"][:count],
        "pixels": clips,  # type: ignore[typeddict-item]
        "first_frames": torch.stack([clip[:, 0] for clip in clips]),
        "prompt_states": Conditions(torch.randn(count, 16, 32, generator=source)),
    }


@pytest.mark.parametrize("kind", ["5b", "1.5_i2v"])
def test_losses_and_gradients_are_those_of_the_clips(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With caption dropout as zeros, latents drawn, noise on first frames, and motion looked at."""
    base = make_video_model(kind)
    base.transformer.requires_grad_(True)
    config = LossConfig(weighting="min_snr", motion_ratio=0.25, noise_offset=0.1)
    usual: Any = (base, config, "random", 5, True, ImageConditionConfig(dropout_rate=0.5))
    packed, alone = PackedDenoising(*usual), ClipDenoising(*usual)
    whole = batch()
    (timestep,) = packed.timesteps(whole).unique()
    monkeypatch.setattr(ClipDenoising, "timesteps", lambda self, one: timestep.view(1))
    losses = torch.cat([alone.loss(single(whole, place)) for place in range(3)])
    monkeypatch.undo()
    found = packed.loss(whole)
    assert found.shape == (3,)
    assert (found - losses).abs().max() < 1e-5 * losses.max()
    parameters = [p for _, p in sorted(base.transformer.named_parameters())]
    expected = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    gradients = torch.autograd.grad(found.mean(), parameters, allow_unused=True)
    pairs = [(g, e) for g, e in zip(gradients, expected, strict=True) if e is not None]
    largest = max(float(e.abs().max()) for _, e in pairs)
    assert len(pairs) > 20
    assert max(float((g - e).abs().max()) for g, e in pairs) < 1e-5 * largest


def test_a_row_has_one_timestep_and_rows_share_the_strata() -> None:
    base = make_video_model()
    usual: Any = (base, LossConfig(timestep_sampling="stratified"), "once", 5)
    stratified, uniform = PackedDenoising(*usual), PackedDenoising(base, LossConfig(), "once", 5)
    seen = []
    for first in range(0, 24, 3):
        row = batch(first)
        for denoising in (stratified, uniform):
            timesteps = denoising.timesteps(row)
            assert timesteps.shape == (3,) and len(timesteps.unique()) == 1
        seen.append(int(stratified.timesteps(row)[0]))
    # Two rows in a step of six clips: one from each half.
    assert all(sorted(t // 500 for t in seen[at : at + 2]) == [0, 1] for at in range(0, 8, 2))
    first = uniform.timesteps(batch(6))
    assert first[0] == uniform.timesteps(replace_positions(batch(6), [6, 9, 10]))[0]


def replace_positions(row: Batch, positions: list[int]) -> Batch:
    return {**row, "positions": positions}  # type: ignore[typeddict-item, return-value]


def test_models_that_cannot_be_packed_are_refused() -> None:
    for kind, remedy in (("2b", "use buckets"), ("5b_i2v", "drop_learned_positions")):
        with pytest.raises(InputError, match=f"^pack: .*{remedy}"):
            PackedDenoising(make_video_model(kind), LossConfig(), "once", 5)


def test_a_run_packs(make_clip_recipe: Callable[..., TrainRecipe]) -> None:
    """Rows of clips of both lengths, in the plain order of the stream; and it learns from them."""
    trainer = Trainer(make_clip_recipe(*PACKED, "gradient_checkpointing=true"))
    (stage,) = trainer.stages
    trainer.enter(stage)
    rows: list[Any] = list(build_loader(trainer.examples, stage.micro_batches(0, 0, 1, False)))
    shapes = [[tuple(one.shape) for one in row["latents"]] for row in rows]
    assert sorted(shape[0] for row in shapes[:2] for shape in row) == [3] * 6 + [5] * 2
    assert any(len(set(row)) == 2 for row in shapes)
    assert sorted(index for row in rows[:2] for index in row["indices"]) == [*range(8)]
    trainer.train()
    assert trainer.step_number == 4


def test_clips_of_a_row_have_one_size(make_clip_recipe: Callable[..., TrainRecipe]) -> None:
    recipe = make_clip_recipe(*PACKED)
    assert recipe.data.clips is not None
    recipe.data.clips.buckets = ["9x32x32", "17x32x16"]
    with pytest.raises(DataError, match=r"pack: .* one height x width, these have 32x16, 32x32"):
        Trainer(recipe)


def test_recipes_that_pack() -> None:
    clips = ClipDataConfig(buckets=["9x32x32", "17x32x16"], pack=True)
    assert dict(clips.faults()) == {"pack": "needs buckets of one height x width: a row has one"}
    assert not dict(ClipDataConfig(buckets=["9x32x32", "17x32x32"], pack=True).faults())


def test_what_has_no_effect(make_clip_recipe: Callable[..., TrainRecipe]) -> None:
    recipe = make_clip_recipe(*PACKED)
    alone = replace(recipe, train_batch_size=1)
    assert "data.clips.pack" in dict(recipe_idle(alone)) and "data.clips.pack" not in dict(
        recipe_idle(recipe)
    )
    staged = replace(alone, stages={"one": StageConfig(train_batch_size=2)})
    assert "data.clips.pack" not in dict(recipe_idle(staged))


def test_the_vae_is_not_packed(
    make_clip_recipe: Callable[..., TrainRecipe], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"data.clips.pack: is for the transformer; .*autoencoder"):
        make_clip_recipe(*PACKED, "objective={type: autoencoder}")


def test_tensors_of_several_shapes_are_listed() -> None:
    examples = [{"pixels": torch.zeros(3, n), "weight": torch.tensor(1.0)} for n in (1, 2)]
    found: Any = collate(examples)
    assert [len(one[0]) for one in found["pixels"]] == [1, 2]
    assert found["weight"].shape == (2,)
