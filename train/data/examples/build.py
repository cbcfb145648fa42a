"""Build the examples of a recipe: images or clips, with their buckets."""

from __future__ import annotations

import warnings
from dataclasses import replace

from inference.config import check_size
from inference.models import DiffusionModel
from inference.models.cogvideox import FrameRule, VideoModel, check_positions
from inference.models.stable_diffusion import BaseModel
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
    if isinstance(base, VideoModel):
        found = [one for one in sources.pictures if isinstance(one, Clip)]
        examples = ClipExamples(
            found,
            config,
            bucket_rule(config, base),
            recipe.seed,
            sources.template,
            recipe.train_batch_size,
            pace.first_position,
        )
        examples.with_first_frames = base.is_image_to_video
        examples.pace = pace
        check_buckets(examples, base)
        return examples
    assert isinstance(base, BaseModel)
    resolution = config.resolution or base.resolution
    check_size("data.resolution", resolution, base.size_step)
    subsets = [at_resolution(one, sources.config, config) for one in sources.subsets]
    examples = Examples(
        sources.pictures, config, resolution, recipe.seed, sources.template, subsets
    )
    examples.pace = pace
    examples.latent_factor = base.vae_scale_factor
    examples.assign_buckets(base.size_step, recipe.train_batch_size, pace.first_position)
    return examples


def check_buckets(examples: ClipExamples, base: VideoModel) -> None:
    """Warn about sizes that a model was not trained for; see `check_positions`.

    Raises:
        InputError: its learned positions do not fit the size of some clips.
    """
    rule, factor = FrameRule.of(base.vae), base.vae_scale_factor
    for frames, height, width in sorted(set(examples.buckets)):
        latent_frames = rule.latent_frames(frames)
        if note := check_positions(base.config, width, height, latent_frames, factor):
            warnings.warn(note, RecipeWarning, stacklevel=2)


def bucket_rule(config: DataConfig, base: VideoModel) -> BucketRule:
    """Return the rule for the sizes of clip examples.

    Raises:
        InputError: the base model cannot take a size or a length of the recipe.
    """
    clips = config.clips
    assert clips is not None
    factor = base.vae_scale_factor
    height = clips.height or base.config.sample_height * factor
    width = clips.width or base.config.sample_width * factor
    rule = BucketRule(clips, height, width, base.size_step, FrameRule.of(base.vae))
    rule.check()
    return rule
