"""Class pictures that teach what the base model predicts: loss.prior=prediction."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from inference.models.stable_diffusion.model import BaseModel
from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning
from train.config.recipe import TrainRecipe
from train.objectives.base import Objective
from train.objectives.loading import load_objective
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]

OBJECTIVES = {
    "lora": ["objective={type: lora, rank: 2, dropout: 0.5}"],
    "lora of text too": ["objective={type: lora, rank: 2, train_text_encoder: true}"],
    "combined": [
        "objective={type: combined, members: {word: {objective: {type: textual_inversion, "
        "token: sks}}, style: {objective: {type: lora, rank: 2}}}}"
    ],
    "text_to_image": ["objective={type: text_to_image}", "loss.prior_copy=true"],
    "dreambooth": [
        "objective={type: dreambooth, train_text_encoder: true, stop_text_encoder_training: 0.5}",
        "loss.prior_copy=true",
    ],
}


@pytest.fixture
def recipe(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path) -> MakeRecipe:
    """Recipes of a concept whose class pictures are the same pictures."""
    shutil.copytree(pictures, tmp_path / "class")

    def make(*overrides: str) -> TrainRecipe:
        concept = (
            f"data.concepts.it={{instance_data_dir: {pictures}, class_data_dir: {tmp_path}/class, "
            "instance_token: sks, class_token: number, num_class_images_per: 1}"
        )
        return make_recipe("data.path=null", concept, "loss.prior=prediction", *overrides)

    return make


def batch(*positions: int, step: int = 0) -> Any:
    """Pictures of noise; those of classes at positions below 0."""
    source = torch.Generator().manual_seed(3)
    return {
        "positions": list(positions),
        "indices": list(positions),
        "pixels": torch.rand(len(positions), 3, 16, 16, generator=source) * 2 - 1,
        "prompts": ["sks red" if position >= 0 else "red" for position in positions],
        "step": step,
    }


def change(objective: Objective) -> None:
    """What is trained becomes something else."""
    source = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=source)


def differences(objective: Objective, base: BaseModel, examples: Any) -> Tensor:
    """Mean squares of what is predicted, less what the untouched base model predicts, (b,)."""
    denoising = replace(objective.denoising, prior=None)
    timesteps = denoising.timesteps(examples)
    noisy, _ = denoising.noised(examples, timesteps)
    reported = examples["prompts"]
    with torch.no_grad():
        ours = denoising.base.predict(noisy, timesteps, denoising.base.encode_prompts(reported))
        theirs = base.predict(noisy, timesteps, base.encode_prompts(reported))
    return (ours - theirs).square().flatten(1).mean(1)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_nothing_at_first_and_the_change_later(
    kind: str, recipe: MakeRecipe, tiny_base: BaseModel
) -> None:
    """Exactly 0 while nothing is learned; then what the base model is no more."""
    objective = load_objective(recipe(*OBJECTIVES[kind]), torch.device("cpu"))
    tiny_base.to(torch.device("cpu"))
    objective.train()
    of_class = batch(-1, -2, -3)
    assert objective(of_class).tolist() == [0, 0, 0]
    mixed = objective(batch(4, 5, -5, -6)).detach()
    assert float(mixed[:2].min()) > 0.1  # the noise, as ever
    assert float(mixed[2:].max()) < 1e-9  # rounding of a batch of another size
    change(objective)
    objective.eval()
    losses = objective(of_class).detach()
    assert float(losses.min()) > 1e-6
    expected = differences(objective, tiny_base, of_class)
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_a_hypernetwork_begins_with_what_it_changes(
    recipe: MakeRecipe, tiny_base: BaseModel
) -> None:
    objective = load_objective(recipe("objective={type: hypernetwork}"), torch.device("cpu"))
    of_class = batch(-1, -2)
    expected = differences(objective, tiny_base, of_class)
    assert float(expected.min()) > 0
    assert objective(of_class).tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_examples_of_the_subject_and_gradients_are_what_they_are_without(
    recipe: MakeRecipe,
) -> None:
    """The target has no gradient, and the objective is left as it was, in training."""
    objective = load_objective(recipe(*OBJECTIVES["lora of text too"]), torch.device("cpu"))
    change(objective)
    objective.train()
    usual = replace(objective.denoising, prior=None)
    mixed = batch(4, 5, -5, -6)
    expected = usual.loss(mixed)
    found = objective(mixed)
    assert objective.training
    assert torch.equal(found[:2], expected[:2])
    assert not torch.equal(found[2:], expected[2:])
    found[2:].sum().backward()
    norms = [p.grad.norm() for p in objective.parameters() if p.grad is not None]
    assert len(norms) == len(list(objective.parameters()))
    assert float(torch.stack(norms).max()) > 0
    assert torch.equal(usual.loss(mixed), expected)


def test_a_stopped_text_encoder_does_not_tell_the_base_model(
    recipe: MakeRecipe, tiny_base: BaseModel
) -> None:
    """DreamBooth encodes prompts itself then: the copy gets nothing that was learned."""
    objective = load_objective(recipe(*OBJECTIVES["dreambooth"]), torch.device("cpu"))
    change(objective)
    stopped = batch(-1, -2, step=3)
    expected = differences(objective, tiny_base, stopped)
    assert objective(stopped).tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_a_run(recipe: MakeRecipe) -> None:
    trainer = Trainer(recipe("max_train_steps=2", "data.cache=auto"))
    trainer.train()
    board = EventAccumulator(str(trainer.run.folder.logs)).Reload()
    first, second = (event.value for event in board.Scalars("loss/prior"))
    assert first < 1e-9 < second
    assert board.Scalars("loss/instance")[0].value > 0.1


def test_refused(recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"loss.prior: .*loss.prior_copy=true keeps a second"):
        recipe("objective={type: text_to_image}")
    with pytest.raises(RecipeError, match=r"loss.prior: prediction is for images"):
        recipe("data.clips={frames: 9}")


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["loss.prior_copy=true"], "loss.prior_copy: has no effect but with"),
        (["objective={type: textual_inversion, token: sks}"], "do not contain the new token"),
        (["data.path=x", "data.concepts.it=null"], "loss.prior: has no effect: there are no class"),
    ],
)
def test_settings_without_effect_are_told(
    recipe: MakeRecipe, overrides: list[str], reported: str
) -> None:
    with pytest.warns(RecipeWarning, match=reported):
        recipe(*overrides)
