"""A plug-in as the documentation of older versions has it keeps working."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

from inference.recipe import RecipeWarning
from tests.train.objectives.test_objectives import BIASES
from train.config import MOVED, TrainRecipe
from train.trainer import Trainer

OLD = (
    BIASES.replace("from train.families import build_denoising\n", "")
    .replace("from train.losses.denoising import", "from train.denoising import")
    .replace("build_denoising(", "Denoising.of(")
    .replace("only_biases:", "my_objective:")
)
"""An objective that takes the loss as older versions have it."""


def test_old_objective_trains(make_recipe: Callable[..., TrainRecipe], outside: Path) -> None:
    (outside / "my_objective.py").write_text(OLD)
    with pytest.warns(RecipeWarning) as reported:
        recipe = make_recipe("plugins=[my_objective]", "objective={type: biases}")
    assert [str(one.message) for one in reported] == [
        "a plug-in imports Denoising from train.denoising, which has moved: from "
        "train.objectives.loading import OldDenoising"
    ]
    trainer = Trainer(recipe)
    before = [parameter.detach().clone() for parameter in trainer.objective.parameters()]
    trainer.train()
    after = list(trainer.objective.parameters())
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("old", MOVED)
def test_old_names_are_found_by_plugins_only(
    old: str, make_recipe: Callable[..., TrainRecipe], outside: Path
) -> None:
    source = "".join(f"from {old} import {name}\n" for name in MOVED[old])
    (outside / "my_objective.py").write_text(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecipeWarning)
        make_recipe("plugins=[my_objective]")
    for name, place in MOVED[old].items():
        assert getattr(sys.modules["my_objective"], name) is resolve_name(place)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(old)
