"""The parts of a run, on a base model without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from inference.config import ImageConfig
from inference.models import DiffusionModel, skeleton
from inference.parallel import Layout
from train.config import AutoencoderConfig, LoraConfig, TrainRecipe
from train.data import (
    ClassFolder,
    Examples,
    Sources,
    build_examples,
    class_folders,
    find_sources,
    pictures_there,
)
from train.families import training_of
from train.monitoring import grid_images
from train.objectives import Objective, objective_on
from train.stages import Stage, stages_of


@dataclass(frozen=True)
class Outline:
    """What a run is made of, on a base model without weights."""

    sources: Sources
    images: list[ImageConfig]
    """Of the previews."""
    folders: list[ClassFolder]
    objective: Objective
    """On the meta device."""
    stages: list[Stage]
    examples: list[Examples]
    """Of each stage."""


def outlined(recipe: TrainRecipe, processes: int = 1) -> Outline:
    """Return the parts of a run, made by the same functions as in training.

    Args:
        recipe: the run's.
        processes: all of the run.

    Raises:
        InputError: the run could not start: data, captions, sizes or the base model.
    """
    size = Layout(0, processes, recipe.parallel.context).data_size
    sources = find_sources(recipe)
    images = [*grid_images(recipe, sources.concepts).values()]
    folders = class_folders(sources.concepts, Path(recipe.output_dir) / recipe.name)
    objective = objective_without_weights(recipe, skeleton(recipe.base_model, "fp32"))
    base, data, stages = objective.base, recipe.data, stages_of(recipe, size)
    examples = [build_examples(s.recipe, sources, base, s.pace(size)) for s in stages]
    there = pictures_there(folders, data.captions.extensions, data.broken_pictures)
    for one in examples if (others := sources.class_pictures or there) else ():
        one.add_class_pictures(others)
    return Outline(sources, images, folders, objective, stages, examples)


def objective_without_weights(recipe: TrainRecipe, base: DiffusionModel) -> Objective:
    """Build the objective as `objective_on`, without quantized weights and feature networks."""
    config = recipe.objective
    if isinstance(config, AutoencoderConfig):
        config = replace(config, perceptual_weight=0.0, l1_weight=config.l1_weight or 1.0)
    unpacked = replace(recipe.base_model, quantization=None)
    if not isinstance(config, LoraConfig):
        training_of(base).fill_skeleton(base)
    # What others begin with is worked out from values; a LoRA's is as large as it is random.
    with torch.device("meta" if isinstance(config, LoraConfig) else "cpu"):
        objective = objective_on(replace(recipe, objective=config, base_model=unpacked), base)
    base.to("meta")
    return objective.to("meta")
