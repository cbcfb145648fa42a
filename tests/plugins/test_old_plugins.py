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
from train.config import MOVED, TrainRecipe
from train.trainer import Trainer

OLD = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from inference.artifacts.checkpoint import Checkpoint
from train.config import OBJECTIVE_CONFIGS, ObjectiveConfig
from train.denoising import Denoising
from train.objectives.base import Objective


class BiasObjective(Objective):
    def __init__(self, recipe, base):
        super().__init__(base)
        self.denoising = Denoising.of(recipe, base)
        named = base.unet.named_parameters()
        biases = {name.replace(".", "_"): p for name, p in named if name.endswith("bias")}
        self.biases = nn.ParameterDict(biases).requires_grad_(True)

    def forward(self, batch):
        return self.denoising.loss(batch)

    def artifact(self):
        return Checkpoint.of(self.base)


@dataclass
class BiasConfig(ObjectiveConfig):
    target: ClassVar[str] = "my_objective:BiasObjective"
    type: Literal["biases"] = "biases"


OBJECTIVE_CONFIGS["biases"] = BiasConfig
"""


def test_old_objective_trains(make_recipe: Callable[..., TrainRecipe], outside: Path) -> None:
    (outside / "my_objective.py").write_text(OLD)
    with pytest.warns(RecipeWarning) as told:
        recipe = make_recipe("plugins=[my_objective]", "objective={type: biases}")
    assert [str(one.message) for one in told] == [
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
