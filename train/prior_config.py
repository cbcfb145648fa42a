"""What class pictures teach: themselves, or what the base model makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.faults import Faults
from train.objective_configs import TextualInversionConfig, WholePartsConfig

if TYPE_CHECKING:
    from train.config import TrainRecipe


def prediction_faults(recipe: TrainRecipe) -> Faults:
    """What `loss.prior: prediction` cannot go with."""
    if recipe.loss.prior != "prediction":
        return
    if recipe.data.clips is not None:
        yield "loss.prior", "prediction is of pictures; clips (data.clips) have no class pictures"
    if isinstance(recipe.objective, WholePartsConfig) and not recipe.loss.prior_copy:
        kind = recipe.objective.type
        yield (
            "loss.prior",
            f"prediction needs the base model as it was, and objective.type: {kind} changes its "
            "weights: loss.prior_copy=true keeps a second copy of them, 4 bytes for each that is "
            "trained (3.4 GB for the UNet of SD 1.5, 10 GB for SDXL's); a lora needs none",
        )


def idle_prediction(recipe: TrainRecipe) -> Faults:
    """What of it has no effect."""
    loss = recipe.loss
    is_whole = isinstance(recipe.objective, WholePartsConfig)
    if loss.prior_copy and not (is_whole and loss.prior == "prediction"):
        yield (
            "loss.prior_copy",
            "has no effect but with loss.prior: prediction of an objective that trains the base "
            "model's own weights",
        )
    if loss.prior != "prediction":
        return
    if not recipe.data.has_prior:
        yield "loss.prior", "has no effect: there are no class pictures"
    elif isinstance(recipe.objective, TextualInversionConfig):
        yield "loss.prior", "has no effect: prompts of class pictures do not call the new word"
