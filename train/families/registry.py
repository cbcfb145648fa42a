"""The registry of training halves, by the name of the family.

It has no heavy imports, so that plug-ins can register their half at any time.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.models import DiffusionModel
    from train.config import TrainRecipe
    from train.families.base import FamilyTraining
    from train.losses import Denoising

TRAINING: dict[str, str | FamilyTraining[Any]] = {
    "stable_diffusion": "train.families.stable_diffusion:TRAINING",
    "cogvideox": "train.families.cogvideox:TRAINING",
}
"""Name of a family (`DiffusionModel.family_name`) -> its training half, or `module:NAME` of it."""


def register_training(name: str, training: str | FamilyTraining[Any]) -> None:
    """Add the training half of a family, or replace it.

    Args:
        name: the family's, as in `DiffusionModel.family_name`.
        training: the half itself, or `module:NAME`, which is imported when it is needed.
    """
    TRAINING[name] = training


def training_of(base: DiffusionModel) -> FamilyTraining[Any]:
    """Return the training half of a model's family.

    Raises:
        InputError: the family has none.
    """
    name = base.family_name
    found = TRAINING.get(name)
    if found is None:
        raise InputError(
            f"base_model.path: {base.path!r} is of the model family {name!r}, which has no "
            f"training half; families with one: {', '.join(TRAINING)}. A plug-in adds its own by "
            "train.families.register_training"
        )
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def build_denoising(recipe: TrainRecipe, base: DiffusionModel) -> Denoising:
    """Return the denoising loss of a recipe on its base model."""
    return training_of(base).loss(recipe, base)
