"""Build the objective of a recipe on its base model."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import replace

import torch

from inference.memory import is_packed
from inference.models import (
    DTYPES,
    DiffusionModel,
    load_model,
    quantize_denoiser,
    weight_dtype,
)
from inference.recipe import old_names
from inference.runtime import InputError
from train.config import MOVED, TrainRecipe
from train.families import build_denoising, training_of
from train.losses import Denoising, FrozenPrior, check_weights
from train.objectives.base import Objective

BaseReader = Callable[[TrainRecipe], DiffusionModel]


def read_base(recipe: TrainRecipe) -> DiffusionModel:
    """Return the recipe's base model on the CPU, as training starts from it: not quantized yet.

    Raises:
        InputError: it cannot be loaded.
    """
    plain = replace(recipe.base_model, vae_precision="fp32", quantization=None)
    return load_model(plain, read_precision(recipe))


def load_objective(
    recipe: TrainRecipe,
    device: torch.device,
    place: Callable[[Objective], object] | None = None,
    read: BaseReader = read_base,
) -> Objective:
    """Load the base model, and return the recipe's objective on it.

    Trained weights have the dtype of `memory.trained_weights`; frozen ones that of
    `mixed_precision`, and are read in it if the objective needs no exact values: half of the
    system's memory, for the same bytes.

    Args:
        recipe: the run's.
        device: of what is trained.
        place: moves the base model, which was read on the CPU; by default to the device.
        read: returns the base model.

    Raises:
        InputError: the base model cannot be loaded, or not be trained.
    """
    objective = objective_on(recipe, read(recipe))
    objective.to(device)
    if place is None:
        objective.base.to(device)
    else:
        place(objective)
    return with_prior(recipe, objective)


def read_precision(recipe: TrainRecipe) -> str:
    """Return the precision in which the base model is read, except for its VAE: that is fp32."""
    is_exact = recipe.objective.reads_weights and recipe.memory.trained_weights == "fp32"
    return "fp32" if is_exact else recipe.mixed_precision


def objective_on(recipe: TrainRecipe, base: DiffusionModel) -> Objective:
    """Return the recipe's objective on a base model as it was read; see `load_objective`.

    Raises:
        InputError: the base model does not support this training.
    """
    check_timesteps(recipe, base)
    training = training_of(base)
    training.check(recipe, base)
    if recipe.parallel.context > 1:
        base.check_context(recipe.parallel.context)
    training.prepare(recipe, base)
    if recipe.base_model.quantization is not None:
        quantize_denoiser(base, recipe.base_model.quantization, DTYPES[recipe.mixed_precision])
    objective = build_objective(recipe, base)
    check_packed(base)
    check_weights(recipe.loss, base.parametrization)
    base.dtype = DTYPES[recipe.mixed_precision]
    for name, part in base.parts.items():
        for path, parameter in part.named_parameters():
            if not parameter.requires_grad and not is_packed(parameter):
                parameter.data = parameter.data.to(drawn_dtype(recipe, base, f"{name}.{path}"))
    for parameter in objective.parameters():
        parameter.data = parameter.data.to(DTYPES[recipe.memory.trained_weights])
    return objective


def check_packed(base: DiffusionModel) -> None:
    """Check that no packed weight is trained, by an objective of a plug-in.

    Raises:
        InputError: one is.
    """
    for path, parameter in base.denoiser.named_parameters():
        if parameter.requires_grad and is_packed(parameter):
            raise InputError(
                f"base_model.quantization: the objective trains {base.denoiser_name}.{path}, whose "
                "values are packed; leave quantization out"
            )


def check_timesteps(recipe: TrainRecipe, base: DiffusionModel) -> None:
    """Check the range of timesteps against the base model's.

    Raises:
        InputError: it has fewer.
    """
    count = base.parametrization.num_train_timesteps
    if recipe.loss.min_timestep >= count:
        raise InputError(
            f"loss.min_timestep: must be below {count}, the number of the base model's timesteps, "
            f"got {recipe.loss.min_timestep}"
        )
    if recipe.loss.max_timestep is not None and recipe.loss.max_timestep > count:
        raise InputError(
            f"loss.max_timestep: must be at most {count}, the number of the base model's "
            f"timesteps, got {recipe.loss.max_timestep}"
        )


def drawn_dtype(recipe: TrainRecipe, base: DiffusionModel, name: str) -> torch.dtype:
    """Return the dtype of a frozen weight, or that in which a trained one draws previews.

    Args:
        recipe: the run's.
        base: its base model.
        name: of the weight in the base model or in the objective, with the part in front.
    """
    part, _, path = name.partition(".")
    dtype = training_of(base).frozen_dtype(recipe, base, part)
    return weight_dtype(base.parts.get(part), path, dtype)


def enable_gradient_checkpointing(objective: Objective) -> None:
    """Enable gradient checkpointing in the networks that gradients flow through.

    transformers recomputes a layer only in training mode, which a frozen text encoder is not in:
    its layers are set to it, while all that is inside them (dropout) stays in evaluation mode.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = objective.base
    base.denoiser.enable_gradient_checkpointing()
    base.vae.enable_gradient_checkpointing()
    for encoder in objective.encoders_with_gradients.values():
        name = "activation_checkpointing_enable"  # its name in newer versions of transformers
        getattr(encoder, name if hasattr(encoder, name) else "gradient_checkpointing_enable")()
        for layer in encoder.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True


def with_prior(recipe: TrainRecipe, objective: Objective) -> Objective:
    """Set up the recipe's prior for class images; call before the first step."""
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
    training_of(base).check_objective(recipe.objective, base)
    with old_names(MOVED):
        return pkgutil.resolve_name(type(recipe.objective).target)(recipe, base)


class OldDenoising(Denoising):
    """`Denoising` as plug-ins for older versions import it, with the loss of a recipe as `of`."""

    @staticmethod
    def of(recipe: TrainRecipe, base: DiffusionModel) -> Denoising:
        """Return what `build_denoising` returns."""
        return build_denoising(recipe, base)
