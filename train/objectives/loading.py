"""Build the objective of a recipe on its base model."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inference.models import DTYPES, DiffusionModel, load_model
from inference.models.cogvideox import VideoModel, drop_learned_positions, is_packed, quantize
from inference.models.stable_diffusion import BaseModel, frozen_dtype
from inference.recipe import old_names
from inference.runtime import InputError
from train.config import MOVED, OBJECTIVE_CONFIGS, TrainRecipe
from train.losses import FrozenPrior
from train.objectives.base import Objective

if TYPE_CHECKING:
    pass


def load_objective(recipe: TrainRecipe, device: torch.device) -> Objective:
    """The recipe's objective on its base model.

    What is trained is in fp32, as it was read; what is frozen in the format of `mixed_precision`.

    Raises:
        InputError: the base model cannot be loaded, or not be trained upon.
    """
    in_fp32 = replace(recipe.base_model, vae_precision="fp32", quantization=None)
    objective = objective_on(recipe, load_model(in_fp32, "fp32"))
    objective.base.to(device)
    return with_prior(recipe, objective.to(device))


def objective_on(recipe: TrainRecipe, base: DiffusionModel) -> Objective:
    """The recipe's objective on a base model in fp32; see `load_objective`.

    Raises:
        InputError: the base model cannot be trained upon so.
    """
    check_trainable(recipe, base)
    if recipe.drop_learned_positions:
        assert isinstance(base, VideoModel)
        take_positions(base)
    if recipe.base_model.quantization is not None:
        assert isinstance(base, VideoModel)
        quantize(base, recipe.base_model.quantization, DTYPES[recipe.mixed_precision])
    objective = build_objective(recipe, base)
    base.dtype = DTYPES[recipe.mixed_precision]
    for name, part in base.parts.items():
        for parameter in part.parameters():
            if not (parameter.requires_grad or is_packed(parameter)):
                parameter.data = parameter.data.to(part_dtype(recipe, base, name))
    return objective


def take_positions(base: VideoModel) -> None:
    """Takes away what a model has learned of one size; InputError where there is nothing."""
    if not drop_learned_positions(base.transformer):
        raise InputError(f"drop_learned_positions: {base.path!r} has learned none; leave it out")


def check_trainable(recipe: TrainRecipe, base: DiffusionModel) -> None:
    """Raises InputError if the recipe's objective or data do not go with the base model."""
    path, kind = recipe.base_model.path, recipe.objective
    if isinstance(base, VideoModel):
        if not kind.learns_clips:
            known = ", ".join(name for name, one in OBJECTIVE_CONFIGS.items() if one.learns_clips)
            raise InputError(
                f"objective.type: {kind.type} cannot be trained upon {path!r}, a video model; "
                f"{known} can"
            )
        if recipe.data.clips is None:
            raise InputError(
                f"data.clips: must be given, as data.clips.frames=49: {path!r} is a video model"
            )
        return
    assert isinstance(base, BaseModel)
    if recipe.data.clips is not None:
        raise InputError(f"data.clips: are for video models; {path!r} is a model of pictures")
    if base.is_inpainting_model and kind.type != "autoencoder":
        raise InputError(
            f"base_model.path: {path!r} is an inpainting model, which also looks "
            "at a mask: it is drawn with, and not trained upon. Train upon the plain model; what "
            "is learned works with both"
        )


def part_dtype(recipe: TrainRecipe, base: DiffusionModel, part: str) -> torch.dtype:
    """The number format in which a part of the base model is frozen, and drawn with."""
    return frozen_dtype(base, recipe.base_model, recipe.mixed_precision, part)


def enable_gradient_checkpointing(objective: Objective) -> None:
    """Switches gradient checkpointing on in the networks that gradients flow through."""
    base = objective.base
    base.denoiser.enable_gradient_checkpointing()
    base.vae.enable_gradient_checkpointing()
    for encoder in (e for name, e in base.text_encoders.items() if objective.trains(name)):
        name = "activation_checkpointing_enable"  # what newer versions of transformers call it
        getattr(encoder, name if hasattr(encoder, name) else "gradient_checkpointing_enable")()


def with_prior(recipe: TrainRecipe, objective: Objective) -> Objective:
    """Let class pictures teach what the recipe says; call before the first step."""
    if recipe.loss.prior == "prediction" and recipe.data.has_prior:
        learned = [member.objective.artifact() for member in objective.members(recipe).values()]
        prior = FrozenPrior(
            objective,
            objective.base.parts.values(),
            learned,
            keeps_copy=recipe.loss.prior_copy,
            changes_prompts=objective.changes_prompts,
        )
        objective.denoising = replace(objective.denoising, prior=prior)
    return objective


def build_objective(recipe: TrainRecipe, base: DiffusionModel) -> Objective:
    """Return the recipe's objective, attached to the base model."""
    with old_names(MOVED):
        return pkgutil.resolve_name(type(recipe.objective).target)(recipe, base)
