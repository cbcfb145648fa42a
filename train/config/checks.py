"""Rules that concern several sections of a training recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.config.clips import ImageConditionConfig
from train.config.containers import is_address
from train.config.data import has_streamed
from train.config.objectives import CombinedConfig, TextualInversionConfig, WholePartsConfig
from train.config.optimization import schedule_faults
from train.config.recipe import TrainRecipe, largest_batch, named_stages
from train.config.rules import Faults, at_least

if TYPE_CHECKING:
    from train.config.data import DataConfig


def recipe_faults(recipe: TrainRecipe) -> Faults:
    """Yield every combination of keys that is refused."""
    yield from at_least(
        1,
        max_train_steps=recipe.max_train_steps,
        train_batch_size=recipe.train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        log_every_n_steps=recipe.log_every_n_steps,
    )
    if not 0 <= recipe.seed < 2**63:
        yield "seed", f"must lie in 0 … 2^63-1, got {recipe.seed}"
    for name, limit in (("norm", recipe.max_grad_norm), ("value", recipe.max_grad_value)):
        if limit is not None and limit <= 0:
            yield f"max_grad_{name}", f"must be above 0, got {limit}; null switches it off"
    if recipe.overwrite and recipe.resume:
        yield "overwrite", "cannot go with resume: one begins anew, the other goes on"
    if not recipe.name.strip() or "/" in recipe.name or recipe.name.startswith("."):
        yield "name", f"must be the name of a folder, got {recipe.name!r}"
    steps = "max_train_steps", recipe.max_train_steps
    yield from schedule_faults(recipe.lr_scheduler, "lr_scheduler", *steps)
    if recipe.lr_scheduler.schedule and not recipe.optimizer.learning_rate:
        yield "optimizer.learning_rate", "must be above 0: the schedule is measured by it"
    if isinstance(recipe.objective, CombinedConfig):
        yield from recipe.objective.faults_within(*steps)
    yield from stage_faults(recipe)
    yield from _quantization_faults(recipe)
    yield from mask_faults(recipe)
    yield from prediction_faults(recipe)
    yield from streaming_faults(recipe)
    if recipe.data.packs_clips and not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "data.clips.pack", f"is of the transformer; objective.type: {kind} trains the VAE"
    if recipe.data.has_concepts and not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "data.concepts", f"go with prompts, which objective.type: {kind} has none of"
    if recipe.data.has_prior and recipe.data.subsets and not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "data.subsets", f"with is_reg are of prompts, which objective.type: {kind} lacks"
    if recipe.objective.needs_concepts and not (recipe.data.has_concepts or recipe.data.subsets):
        yield (
            "data.concepts",
            f"objective.type: {recipe.objective.type} learns concepts: give data.concepts (or "
            "data.concepts_list), or take objective.type: text_to_image for a "
            "folder of pictures with captions",
        )


def _quantization_faults(recipe: TrainRecipe) -> Faults:
    kind, key = recipe.base_model.quantization, "base_model.quantization"
    if kind is not None and recipe.objective.type != "lora":
        yield key, f"{kind} goes with objective.type: lora; packed weights are not trained"
    elif kind is not None and recipe.data.clips is None:
        yield key, f"{kind} is of video models, which learn data.clips"


def recipe_idle(recipe: TrainRecipe) -> Faults:
    """Yield every key that has no effect, given the others."""
    if recipe.data.clips is None:
        why = "has no effect: it is of clips (data.clips)"
        if recipe.loss.motion_ratio:
            yield "loss.motion_ratio", why
        if recipe.image_condition != ImageConditionConfig():
            yield "image_condition", why
        if recipe.sampling.clips:
            yield "sampling.clips", why
        if recipe.drop_learned_positions:
            yield "drop_learned_positions", why
    elif recipe.sampling.images:
        yield "sampling.images", "has no effect: a video model draws sampling.clips"
    if recipe.data.packs_clips and largest_batch(recipe) == 1:
        yield "data.clips.pack", "has no effect with train_batch_size: 1, the clips of a row"
    if not recipe.objective.learns_from_captions:
        what = f"objective.type: {recipe.objective.type} shows reconstructions instead"
        if recipe.sampling.images:
            yield "sampling.images", f"has no effect: {what}"
        if recipe.sampling.sanity_prompt is not None:
            yield "sampling.sanity_prompt", f"has no effect: {what}"
    yield from _idle_prior(recipe)
    yield from idle_prediction(recipe)
    yield from idle_validation(recipe)


def _idle_prior(recipe: TrainRecipe) -> Faults:
    loss = recipe.loss
    if not recipe.data.has_prior:
        why = "has no effect: no concept has class pictures (num_class_images_per)"
        if recipe.data.subsets:
            why = "has no effect: no subset is_reg"
        if loss.prior_weight != 1.0:
            yield "loss.prior_weight", why
        if loss.prior_weight_min is not None:
            yield "loss.prior_weight_min", why
    elif loss.prior_weight == 0 and not loss.prior_weight_min:
        yield (
            "loss.prior_weight",
            "0 makes class pictures count nothing, while each costs as much as a subject's; "
            "num_class_images_per: 0 (or no subset with is_reg) leaves them out",
        )
    target = loss.prior_weight_target
    if target is not None and target > recipe.max_train_steps:
        yield (
            "loss.prior_weight_target",
            f"{target} is not reached: max_train_steps is {recipe.max_train_steps}",
        )


def mask_faults(recipe: TrainRecipe) -> Faults:
    """What masks cannot go with."""
    if not recipe.data.has_masks:
        return
    if recipe.data.clips is not None:
        yield "data.masks", "are of pictures; clips (data.clips) count as a whole"
    if not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "data.masks", f"weigh the error of latents, which objective.type: {kind} has none of"


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


def _size_faults(name: str, resolution: int | None, data: DataConfig) -> Faults:
    """Sizes that do not follow a stage's resolution."""
    if resolution is None:
        return
    parts = [one for one in data.named_subsets.values() if not one.is_reg] or [data]
    if any(one.buckets is not None and not one.buckets.follow_resolution for one in parts):
        yield f"stages.{name}.resolution", "has no effect: data.buckets says the sizes itself"
    for subset, one in data.named_subsets.items():
        if not one.is_reg and one.resolution != data.resolution:
            yield (
                f"stages.{name}.resolution",
                f"is not clear: data.subsets.{subset} has a resolution too; leave one out",
            )


def stage_faults(recipe: TrainRecipe) -> Faults:
    """What is wrong with a recipe's stages, taken together."""
    named = named_stages(recipe)
    if not named:
        return
    *before, last = named.values()
    for name, stage in list(named.items())[:-1]:
        if stage.steps is None:
            yield f"stages.{name}.steps", "must be given: only the last stage may leave it out"
    known = sum(stage.steps or 0 for stage in before)
    total = known + (last.steps if last.steps is not None else recipe.max_train_steps - known)
    if total != recipe.max_train_steps or known >= recipe.max_train_steps:
        yield (
            "max_train_steps",
            f"must be the sum of all stages' steps ({known + (last.steps or 1)}"
            f"{'' if last.steps else ' or more'}), got {recipe.max_train_steps}",
        )
    for name, stage in named.items():
        clips = recipe.data.clips
        for key in stage.clip_size:
            if clips is None:
                yield f"stages.{name}.{key}", "is of clips, which need data.clips"
            elif clips.buckets:
                yield f"stages.{name}.{key}", "cannot go with data.clips.buckets: they say sizes"
        yield from _size_faults(name, stage.resolution, recipe.data)
        if stage.resolution is not None and clips is not None:
            yield f"stages.{name}.resolution", "is of pictures; of clips say height and width"


def streaming_faults(recipe: TrainRecipe) -> Faults:
    """What does not go with streaming."""
    data, validation = recipe.data, recipe.validation
    for name, one in data.named_subsets.items():
        if one.streaming not in (None, data.streaming):
            yield (
                f"data.subsets.{name}.streaming",
                "is one for the run: say it in data.streaming; null fetches a subset as a whole",
            )
    if not has_streamed(data):
        return
    if data.cache == "auto":
        yield (
            "data.cache",
            "auto would keep the latents of all streamed pictures in memory; say disk, which "
            "encodes each once and then fetches nothing any more, or off",
        )
    for name in (name for name, one in data.named_subsets.items() if one.is_reg):
        yield (
            f"data.subsets.{name}.is_reg",
            "class pictures come in an order of their own, in which streamed pictures cannot: "
            "leave data.streaming out, or take them from another run",
        )
    if validation is not None and is_address(validation.path):
        yield "validation.path", "is not streamed: name a folder or container on this disk"
    is_cached = data.cache != "off" and recipe.objective.learns_from_captions
    if validation is not None and validation.split is not None and not is_cached:
        yield (
            "validation.split",
            "would fetch all shards at each validation, as nothing is cached (data.cache: disk "
            "does so, but not of objective.type: autoencoder); say validation.path",
        )


def idle_validation(recipe: TrainRecipe) -> Faults:
    """What of it has no effect."""
    validation = recipe.validation
    if validation is None:
        return
    if validation.timesteps and not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "validation.timesteps", f"has no effect: objective.type: {kind} has none"
