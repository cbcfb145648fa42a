"""Hypernetworks as in A1111's training (`modules/hypernetworks/hypernetwork.py`, 1.10.1)."""

import warnings
from typing import Any

from torch import Tensor, nn

from inference.artifacts import (
    Hypernetwork,
    HypernetworkSpec,
    comfyui_difference,
    distance_from_identity,
)
from inference.recipe import RecipeWarning
from train.common import Batch, derive_seed
from train.config import HypernetworkConfig, TrainRecipe
from train.families import build_denoising
from train.objectives.base import Objective

FAR = 0.3
"""|change| / |context| above which an initialization causes a warning."""


class HypernetworkObjective(Objective):
    """Trains networks in front of the keys and values of the UNet's attention."""

    def __init__(self, recipe: TrainRecipe, base: Any) -> None:
        super().__init__(base)
        config = recipe.objective
        assert isinstance(config, HypernetworkConfig)
        self.denoising = build_denoising(recipe, base)
        spec = HypernetworkSpec(
            layer_structure=tuple(config.layer_structure),
            activation_func=config.activation_func.lower(),
            is_layer_norm=config.add_layer_norm,
            dropout_structure=tuple(config.dropout_structure or ()),
            activate_output=config.activate_output,
            weight_initialization=config.weight_initialization,
        )
        seed = derive_seed(recipe.seed, "hypernetwork")
        self.network = Hypernetwork.create(base, spec, config.sizes, seed)
        self.network.suffix = f".{config.save_as}"
        self.hypernetwork = nn.ModuleDict(
            {str(width): pair for width, pair in self.network.pairs.items()}
        )
        self.hypernetwork.requires_grad_(True)
        self.network.attach(base)
        warn_if_far(distance_from_identity(list(self.network.pairs.values())), config)
        warn_of_comfyui(spec, config)

    def forward(self, batch: Batch) -> Tensor:
        return self.denoising.loss(batch)

    def artifact(self) -> Hypernetwork:
        return self.network


def warn_if_far(distance: float, config: HypernetworkConfig) -> None:
    """Warn about an initialization that destroys the base model's conditioning."""
    if distance > FAR:
        warnings.warn(
            f"objective.weight_initialization: {config.weight_initialization} begins by changing "
            f"contexts by {distance:.0%} of their size, so that the first drawings are noise; "
            "Normal begins near 1 %, and add_layer_norm: true does with every initialization",
            RecipeWarning,
            stacklevel=2,
        )


def warn_of_comfyui(spec: HypernetworkSpec, config: HypernetworkConfig) -> None:
    """Warn about networks that ComfyUI does not apply as A1111 does."""
    difference = comfyui_difference(spec)
    if difference and config.save_as == "pt":
        warnings.warn(f"objective.activation_func: {difference}", RecipeWarning, stacklevel=2)
