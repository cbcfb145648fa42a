"""Validation: which pictures, what is measured, and that training goes on as if it were not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.models.stable_diffusion.model import BaseModel
from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning
from inference.runtime.errors import InputError
from tests.train.conftest import Commands
from tests.train.run_tools import contents, largest_difference, losses_by_hand, succeed
from train.common.errors import DataError, RunDirectoryError
from train.config.recipe import TrainRecipe
from train.data.sources.sources import find_sources
from train.plan.plan import plan_run
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


@pytest.fixture
def others(pictures: Path, tmp_path: Path) -> Path:
    """Three other pictures to validate with."""
    folder = tmp_path / "others"
    folder.mkdir()
    for number in (1, 4, 6):
        for file in pictures.glob(f"{number}-*"):
            shutil.copy(file, folder / f"other{file.name}")
    return folder


def names(pictures: Any) -> set[str]:
    return {one.path.name for one in pictures}


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(run / "logs")).Reload()
    return {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag.startswith("validation")
    }


# Which pictures


def test_a_share_is_held_back_by_name(make_recipe: MakeRecipe, pictures: Path) -> None:
    sources = find_sources(make_recipe("validation.split=0.4"))
    held, learned = names(sources.held_back.pictures), names(sources.pictures)
    assert held | learned == {file.name for file in pictures.glob("*.png")}
    assert not held & learned
    assert 1 <= len(held) <= 6
    other = find_sources(make_recipe("validation={split: 0.4, seed: 1}"))
    assert names(other.held_back.pictures) != held
    assert other.fingerprint == sources.fingerprint
    few = find_sources(make_recipe("validation={split: 0.4, max_examples: 1}"))
    assert names(few.pictures) == learned
    assert len(few.held_back.pictures) == 1
    assert names(few.held_back.pictures) < held


def test_more_pictures_move_none(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path) -> None:
    """The folder may lie elsewhere, too."""
    before = find_sources(make_recipe("validation.split=0.4"))
    more = tmp_path / "elsewhere" / "more"
    shutil.copytree(pictures, more)
    for file in sorted(pictures.glob("*.*")):
        shutil.copy(file, more / f"a{file.name}")
    after = find_sources(make_recipe("validation.split=0.4", f"data.path={more}"))
    assert names(before.held_back.pictures) < names(after.held_back.pictures)
    assert names(before.pictures) < names(after.pictures)


def test_one_at_least_and_never_all(make_recipe: MakeRecipe) -> None:
    sources = find_sources(make_recipe("validation.split=1e-6"))
    assert (len(sources.held_back.pictures), len(sources.pictures)) == (1, 7)
    with pytest.raises(DataError, match=r"0.999999 of 8 pictures holds all of them back"):
        find_sources(make_recipe("validation.split=0.999999"))


def test_the_plan_counts_what_is_learned(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("validation={split: 0.4, every_n_steps: 3, timesteps: [10, 500]}")
    held = len(find_sources(recipe).held_back.pictures)
    plan = plan_run(recipe)
    assert plan.stages[0].epoch_length == 8 - held
    assert plan.validation is not None
    assert (plan.validation.examples, plan.validation.validations) == (held, 3)  # 0, 3 and 4
    assert plan.validation.forward_passes == held * 2 * 3
    assert plan.as_dict()["validation"]["timesteps"] == [10, 500]


# What is measured


@pytest.fixture
def trainer(make_recipe: MakeRecipe, others: Path) -> Callable[..., Trainer]:
    def make(*overrides: str) -> Trainer:
        trainer = Trainer(make_recipe(f"validation.path={others}", "seed=3", *overrides))
        trainer.validation.fill(lambda sequence, _: sequence)
        return trainer

    return make


def change(trainer: Trainer, by: float = 0.1) -> None:
    """What is trained becomes something else."""
    source = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trainer.objective.parameters():
            parameter += by * torch.randn(parameter.shape, generator=source)


def test_losses_by_hand(trainer: Callable[..., Trainer]) -> None:
    """Noise by name, the VAE's mean, the plain caption; nothing follows the run's own seed."""
    made = trainer("data.flip=0.5", "data.crop=random", "data.captions.dropout_rate=0.5")
    validation, base = made.validation, made.base
    assert isinstance(base, BaseModel)
    assert validation.timesteps == [125, 375, 625, 875]
    losses = validation.measure(step=0)
    assert losses.shape == (3, 4)
    expected = losses_by_hand(validation, base, lambda latents, noise, alpha: noise)
    assert losses.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-4)
    bands = validation.by_band(losses)
    assert list(bands) == [
        f"validation/loss_by_timestep/{band}"
        for band in ("000-249", "250-499", "500-749", "750-999")
    ]
    assert list(bands.values()) == pytest.approx(losses.mean(0).tolist(), rel=1e-5)


def test_the_seed_of_the_run_and_its_cache_do_not_matter(trainer: Callable[..., Trainer]) -> None:
    losses = [
        trainer(f"name=run{number}", *overrides).validation.measure(0)
        for number, overrides in enumerate(([], ["seed=7", "data.cache=off"]))
    ]
    assert torch.allclose(*losses, rtol=1e-4)


def test_shares_are_those_of_one_process(trainer: Callable[..., Trainer]) -> None:
    """Bit for bit: micro-batches are the same for any number of processes."""
    validation = trainer("validation.timesteps=[3]").validation
    shares = torch.zeros(3, 3, 1)
    for share, (rank, processes) in zip(shares, ((0, 1), (0, 2), (1, 2)), strict=True):
        validation.fill_in(share, 0, rank, processes)
    assert (shares[1] == 0).sum() == 1  # two micro-batches, of two and of one
    assert torch.equal(shares[1] + shares[2], shares[0])


def test_dropout_is_off_and_nothing_is_left_behind(trainer: Callable[..., Trainer]) -> None:
    made = trainer("objective={type: lora, rank: 2, dropout: 0.5}")
    change(made)
    made.objective.train()
    denoising, state = made.objective.denoising, torch.get_rng_state()
    once = made.validation.measure(1)
    assert torch.equal(made.validation.measure(1), once)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.objective.training
    assert made.objective.denoising is denoising
    assert all(p.requires_grad and p.grad is None for p in made.objective.parameters())


def test_with_ema_the_average_is_measured(trainer: Callable[..., Trainer]) -> None:
    made = trainer("ema={decay: 0.5}")
    before = made.validation.measure(0)
    change(made)
    assert torch.equal(made.validation.measure(1), before)
    assert made.optimization.ema is not None
    for average, parameter in zip(
        made.optimization.ema.shadow_params, made.optimization.parameters, strict=True
    ):
        average.copy_(parameter.detach())
    assert not torch.equal(made.validation.measure(1), before)


def test_examples_are_always_the_same(trainer: Callable[..., Trainer]) -> None:
    """Whatever the recipe draws for training; the loss is that of the mask."""
    made = trainer(
        "data={crop: random, flip: 0.5, background: random, latent_sampling: random, "
        "masks: {source: alpha, unmasked_probability: 0.5}, "
        "captions: {shuffle_tags: true, dropout_rate: 0.5, dropout_every_n_epochs: 2, "
        "tag_dropout_rate: 0.5}}"
    )
    examples = made.validation.examples
    assert not examples.config.is_random
    said = [examples[index]["prompts"] for index in range(3)]
    assert said == [one.captions[0] for one in examples.pictures]
    assert all("number" in text for text in said)
    assert isinstance(examples.latents, list)
    assert set(examples[0]) >= {"latents", "mask"}


def test_buckets_are_measured_one_by_one(trainer: Callable[..., Trainer], others: Path) -> None:
    with Image.open(next(others.glob("*.png"))) as image:
        image.resize((32, 16)).save(others / "wide.png")
    (others / "wide.txt").write_text("wide")
    validation = trainer("data.buckets={sizes: [16x16, 16x32]}").validation
    shapes = [validation.examples.shape(index) for index in range(4)]
    assert sorted(shapes) == [(16, 16)] * 3 + [(16, 32)]
    assert [len(chunk) for chunk in validation.chunks()].count(1) == 2  # one wide, one left over
    assert float(validation.measure(0).min()) > 0.1


def test_an_autoencoder_has_no_timesteps(trainer: Callable[..., Trainer]) -> None:
    made = trainer("objective={type: autoencoder, perceptual_weight: 0.0}")
    losses = made.validation.measure(0)
    assert losses.shape == (3, 1)
    assert torch.equal(made.validation.measure(0), losses)


def test_no_process_waits_for_one_that_fails(
    trainer: Callable[..., Trainer], others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer("data.cache=off")
    reported: list[float] = []

    def reduce(value: torch.Tensor, kind: str) -> torch.Tensor:
        reported.append(float(value[-1]))
        return value + 1

    monkeypatch.setattr(made.accelerator, "reduce", reduce)
    with pytest.raises(DataError, match="another process cannot read"):
        made.validation.measure(0)
    next(others.glob("*.png")).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"other.*png"):
        made.validation.measure(0)
    assert reported == [0, 1]


# Runs


def test_training_is_not_disturbed_and_resuming_measures_the_same(
    make_recipe: MakeRecipe, others: Path, tmp_path: Path
) -> None:
    usual = ["objective={type: lora, rank: 2, dropout: 0.3}", "data.flip=0.5", "ema={}"]
    validation = f"validation={{path: {others}, every_n_steps: 2}}"
    Trainer(make_recipe("name=plain", *usual)).train()
    Trainer(make_recipe("name=watched", validation, *usual)).train()
    Trainer(make_recipe("name=cut", validation, "max_train_steps=2", *usual)).train()
    Trainer(make_recipe("name=cut", validation, "resume=true", *usual)).train()
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    assert largest_difference(plain, watched) == 0
    assert largest_difference(tmp_path / "cut", watched) == 0
    drawn, again = contents(plain), contents(watched)
    grids = [name for name in drawn if name.endswith(".png")]
    assert [again[name] for name in grids] == [drawn[name] for name in grids]
    found = scalars(tmp_path / "watched")
    assert [step for step, _ in found["validation/loss"]] == [0, 2, 4]
    assert len({value for _, value in found["validation/loss"]}) == 3
    assert len(found) == 5  # and four bands
    assert scalars(tmp_path / "cut") == found
    shutil.copy(next(others.glob("*.txt")), others / "more.txt")
    shutil.copy(next(others.glob("*.png")), others / "more.png")
    with pytest.raises(RunDirectoryError, match=r"validation pictures or captions:\s+1 added"):
        Trainer(make_recipe("name=cut", validation, "resume=true", *usual))


def test_on_two_processes(commands: Commands, others: Path, tmp_path: Path) -> None:
    options = (f"output_dir={tmp_path}", "max_train_steps=1", f"validation.path={others}")
    alone = commands.train(*options, "name=one", "gradient_accumulation_steps=2")
    assert alone.status == 0, alone.err
    assert "validation at step 0: loss" in alone.err
    succeed(commands.train_on_two(*options, "name=two"))
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    assert one.keys() == two.keys()
    for tag, values in one.items():
        assert two[tag][0] == values[0]
        assert two[tag][1][1] == pytest.approx(values[1][1], rel=1e-4)


# Recipes


@pytest.mark.parametrize(
    ("validation", "reported"),
    [
        ("{}", "validation.split: or path must be given"),
        ("{split: 0.1, path: x}", "validation.split: or path must be given"),
        ("{split: 1.5}", "validation.split: must lie between 0 and 1"),
        ("{split: 0.1, every_n_steps: 0}", "validation.every_n_steps: must be at least 1"),
        ("{split: 0.1, timesteps: [3, 3]}", "validation.timesteps: must be different"),
    ],
)
def test_refused(make_recipe: MakeRecipe, validation: str, reported: str) -> None:
    with pytest.raises(RecipeError, match=reported):
        make_recipe(f"validation={validation}")


def test_a_timestep_that_is_not_there(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(InputError, match=r"validation.timesteps: 1000 is above the last .* 999"):
        trainer("validation.timesteps=[5, 1000]")


def test_settings_without_effect_are_told(make_recipe: MakeRecipe) -> None:
    with pytest.warns(RecipeWarning, match="num_timesteps: has no effect with timesteps"):
        make_recipe("validation={split: 0.1, timesteps: [5], num_timesteps: 2}")


def test_a_recipe_without_it_holds_nothing_back(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    assert recipe.validation is None
    assert find_sources(recipe) == find_sources(replace(recipe, validation=None))
    assert len(find_sources(recipe).pictures) == 8


def test_subsets_lose_what_is_held_back(make_recipe: MakeRecipe, pictures: Path) -> None:
    """Those of classes stay; what is left is seen as often as their subset says."""
    subsets = (
        f"data={{path: null, subsets: {{one: {{path: {pictures}, repeats: 2, flip: 0.5}}, "
        f"kind: {{path: {pictures}, is_reg: true}}}}}}"
    )
    usual = find_sources(make_recipe("validation.split=0.4"))
    made = Trainer(make_recipe(subsets, "validation.split=0.4"))
    assert names(made.data.sources.held_back.pictures) == names(usual.held_back.pictures)
    assert len(made.examples.slots) == 2 * len(usual.pictures) + 8
    made.validation.fill(lambda sequence, _: sequence)
    assert isinstance(made.validation.examples.latents, list)  # nothing random
    assert len(made.validation.measure(0)) == len(usual.held_back.pictures)
