"""Build the examples of a recipe: images or clips, with their buckets."""

from __future__ import annotations

import warnings
from dataclasses import replace

from inference.config import check_size
from inference.models import DiffusionModel, SizeRules
from inference.recipe import RecipeWarning
from train.config import DataConfig, TrainRecipe
from train.data.examples.clip_buckets import BucketRule
from train.data.examples.clips import ClipExamples
from train.data.examples.examples import Examples
from train.data.examples.stream import Pace
from train.data.sources import Clip, Sources, at_resolution


def build_examples(
    recipe: TrainRecipe, sources: Sources, base: DiffusionModel, pace: Pace | None = None
) -> Examples:
    """Build the examples of a run.

    Args:
        recipe: with the settings of the stage.
        sources: the images or clips of the run.
        base: determines which sizes are possible.
        pace: where the stage starts in the run's stream, and the steps of its sample indices.

    Raises:
        InputError: the base model cannot take images or clips of this size or length.
    """
    # Concepts change how captions are read, stages change sizes.
    config = replace(recipe.data, captions=sources.config.captions)
    pace = pace or Pace()
    if config.clips is not None:
        return build_clip_examples(config, recipe, sources, base.sizes, pace)
    sizes = base.sizes
    resolution = config.resolution or sizes.width
    check_size("data.resolution", resolution, sizes.step)
    subsets = [at_resolution(one, sources.config, config) for one in sources.subsets]
    examples = Examples(
        sources.pictures, config, resolution, recipe.seed, sources.template, subsets
    )
    examples.pace = pace
    examples.latent_factor = base.vae_scale_factor
    examples.takes_scores = sizes.takes_scores
    if sizes.takes_masks and recipe.objective.learns_from_captions:
        examples.inpainting_masks = config.inpainting_masks or "random"
    examples.assign_buckets(sizes.step, recipe.train_batch_size, pace.first_position)
    return examples


def build_clip_examples(
    config: DataConfig, recipe: TrainRecipe, sources: Sources, sizes: SizeRules, pace: Pace
) -> ClipExamples:
    """Build the examples that are made of clips; see `build_examples`."""
    examples = ClipExamples(
        [one for one in sources.pictures if isinstance(one, Clip)],
        config,
        bucket_rule(config, sizes),
        recipe.seed,
        sources.template,
        recipe.train_batch_size,
        pace.first_position,
    )
    examples.with_first_frames = sizes.takes_first_frames
    examples.pace = pace
    check_buckets(examples, sizes)
    return examples


def check_buckets(examples: ClipExamples, sizes: SizeRules) -> None:
    """Warn about sizes at which the model was not trained.

    Raises:
        InputError: the model has learned positions for another size than that of some clips.
    """
    assert sizes.frames is not None
    for frames, height, width in sorted(set(examples.buckets)):
        if note := sizes.check(width, height, sizes.frames.latent_frames(frames)):
            warnings.warn(note, RecipeWarning, stacklevel=2)


def bucket_rule(config: DataConfig, sizes: SizeRules) -> BucketRule:
    """Return the sizes that the examples of clips may have.

    Raises:
        InputError: the base model does not support a size or a length that the recipe asks for.
    """
    clips = config.clips
    assert clips is not None and sizes.frames is not None
    height, width = clips.height or sizes.height, clips.width or sizes.width
    rule = BucketRule(clips, height, width, sizes.step, sizes.frames)
    rule.check()
    return rule
