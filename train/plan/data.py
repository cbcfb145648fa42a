"""The data of a run in numbers: stages, buckets, captions, class images and caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from inference.models import DiffusionModel
from train.config import TrainRecipe
from train.data import (
    FALLBACK,
    ClassFolder,
    Clip,
    ClipExamples,
    Examples,
    Sources,
    StoredStates,
    latents_keys,
    open_cache,
    short_clips,
)
from train.monitoring import still_examples, timesteps_of
from train.objectives import Objective
from train.stages import Stage, stages_of, step_size


@dataclass(frozen=True)
class StagePlan:
    """The figures of a stage."""

    name: str
    first_step: int
    last_step: int
    train_batch_size: int
    gradient_accumulation_steps: int
    micro_batches: int
    """Of each process."""
    examples: int
    """Seen by all processes together."""
    epoch_length: int
    """Examples of an epoch, including those that are repeated to fill micro-batches."""
    epochs: float
    last_epoch: int
    """Number of the epoch that the stage ends in; the first one of the run is 1."""
    buckets: dict[str, int]
    """Images or clips of each shape."""
    repeated: int
    """How many of them occur twice in an epoch."""
    left_out: int
    """Clips that are too short and skipped."""
    stretched: int
    """Clips that are too short, and loop or hold their last frame."""


def plan_stage(
    stage: Stage, examples: Examples, clips: Sequence[object], processes: int
) -> StagePlan:
    """Return the figures of a stage, computed from the same examples as in training."""
    recipe, stream = stage.recipe, examples.stream
    steps, size = stage.last_step - stage.first_step, step_size(stage.recipe, processes)
    own = stream.num_pictures
    length = len(stream)
    shapes = Counter("x".join(map(str, examples.shape(i))) for i in range(examples.num_own))
    short = 0
    if isinstance(examples, ClipExamples):
        short = len(short_clips([one for one in clips if isinstance(one, Clip)], examples.cut))
    is_left_out = isinstance(examples, ClipExamples) and examples.cut.short_clips == "skip"
    last = stage.first_position + steps * size - 1
    return StagePlan(
        name=stage.name,
        first_step=stage.first_step,
        last_step=stage.last_step,
        train_batch_size=recipe.train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        micro_batches=steps * recipe.gradient_accumulation_steps,
        examples=steps * size,
        epoch_length=length,
        epochs=round(steps * size / length, 3),
        last_epoch=examples.place(last)[0] + 1,
        buckets=dict(sorted(shapes.items())),
        repeated=length - own,
        left_out=short if is_left_out else 0,
        stretched=0 if is_left_out else short,
    )


@dataclass(frozen=True)
class CaptionPlan:
    """The figures of captions of images or clips."""

    pictures: int
    with_caption: int
    by_fallback: int
    """How many of them have data.captions.fallback only."""
    empty: int
    """Captions without a word."""
    several: int
    """Images with more than one."""
    different: int
    """Different prompts that can occur; 0 if captions are changed at random."""
    too_long: int | None
    """Prompts with more tokens than the text encoder accepts, which are truncated or split; None if
    the tokenizer is not on the disk."""


def plan_captions(
    sources: Sources, examples: Examples, base: DiffusionModel, is_captioned: bool
) -> CaptionPlan:
    """Count captions of the run; `is_captioned`: whether the objective uses them."""
    pictures = sources.pictures
    per_image = [picture.captions for picture in pictures]
    prompts = examples.all_prompts() if is_captioned and not examples.changes_words else []
    return CaptionPlan(
        pictures=len(pictures),
        with_caption=sum(bool(captions) for captions in per_image),
        by_fallback=sum(one.told_by == FALLBACK for one in pictures),
        empty=sum(not text.strip() for captions in per_image for text in captions),
        several=sum(len(captions) > 1 for captions in per_image),
        different=len(prompts),
        too_long=too_long(base, prompts),
    )


def too_long(base: DiffusionModel, prompts: Sequence[str]) -> int | None:
    """Return how many prompts have more tokens than the text encoder reads at once."""
    tokenizer, room = base.tokenizers[0], base.prompt_shape[0]
    if tokenizer is None:
        return None
    lengths = [len(tokenizer(text, truncation=False).input_ids) for text in prompts]
    return sum(length > room for length in lengths)


@dataclass(frozen=True)
class ClassPlan:
    """Class images, which are paired with every example."""

    wanted: int
    there: int
    """The others are generated before the first step."""


def plan_class_pictures(
    folders: Sequence[ClassFolder], recipe: TrainRecipe, given: int = 0
) -> ClassPlan | None:
    """Count class images; None if there are none. `given`: those of subsets, which exist."""
    if not folders:
        return ClassPlan(given, given) if given else None
    extensions = recipe.data.captions.extensions
    there = sum(len(folder.pictures(extensions)) for folder in folders)
    missing = sum(
        not one.file.exists() for f in folders for one in f.to_draw(recipe.seed, extensions)
    )
    return ClassPlan(wanted=there + missing, there=there)


@dataclass
class CachePlan:
    """What is encoded before the first step, or found in files."""

    kind: str
    """auto (memory), disk or off."""
    latents: int = 0
    """Cached latents: of each image, or of its crops and mirror images; 0 if they are countless."""
    latents_found: int | None = None
    """How many of them are in files; None if no run has used this folder with this model yet."""
    prompts: int = 0
    prompts_found: int | None = None
    masked: int = 0
    """Examples of inpainting models, whose masked image is encoded in every step."""
    notes: list[str] = field(default_factory=list)


def plan_cache(
    recipe: TrainRecipe, sources: Sources, objective: Objective, stages: Sequence[Examples]
) -> CachePlan:
    """Return what the caches have to hold, and what the folder of `cache: disk` contains.

    Weights are not read: their hashes are known from runs that have used the folder. The validation
    split is encoded too.
    """
    data, base = recipe.data, objective.base
    plan = CachePlan(data.cache)
    if data.cache == "off" or not recipe.objective.learns_from_captions:
        return plan
    together = [*stages]
    if recipe.validation is not None:
        last = stages_of(recipe, num_processes=1)[-1].recipe
        together.append(still_examples(last, sources, objective))
    still = [one for one in together if one.config.caches_latents]
    same = [one for one in together if not (objective.changes_prompts or one.changes_words)]
    plan.latents = sum(len(one.owners) for one in still)
    plan.masked = sum(len(one) for one in stages if one.inpainting_masks is not None)
    prompts = sorted({text for one in same for text in one.all_prompts()})
    plan.prompts = len(prompts)
    cache = open_cache(data, recipe.output_dir)
    if cache is None or not cache.folder.is_dir():
        if cache is not None:
            plan.latents_found, plan.prompts_found = 0, 0
        return plan
    vae, text = cache.remembered("vae", base), cache.remembered("text", base)
    if still and vae is not None:
        keys = [key for one in still for key in latents_keys(one, vae)]
        plan.latents_found = sum(map(cache.has, keys))
    if prompts and text is not None:
        stored = StoredStates(cache, text)
        plan.prompts_found = sum(map(stored.has, prompts))
    return plan


@dataclass(frozen=True)
class SubsetPlan:
    """The figures of a subset."""

    name: str
    pictures: int
    """Training images, without the validation split."""
    repeats: int
    is_reg: bool
    """Its images are paired with those of others; their epoch is that of class images."""
    loss_weight: float
    examples: int
    """In an epoch, including those that fill up micro-batches."""
    share: float
    """Fraction of the epoch's examples, or of its class images."""


def plan_subsets(sources: Sources, examples: Examples) -> list[SubsetPlan]:
    """Return the figures of each subset; none if the recipe has none.

    Args:
        sources: the sources of the run.
        examples: examples of the first stage, with its class images.
    """
    if not sources.subsets:
        return []
    stream = examples.stream
    own = _count(examples, range(len(stream)))
    places = len(examples.slots) - stream.num_pictures
    of_classes = _count(examples, range(-1, -places - 1, -1))
    pictures = Counter(picture.subset for picture in examples.pictures)
    found = []
    for subset in sources.subsets:
        config = subset.config
        counts = of_classes if config.is_reg else own
        count = counts[subset.name]
        found.append(
            SubsetPlan(
                name=subset.name,
                pictures=pictures[subset.name],
                repeats=config.repeats,
                is_reg=config.is_reg,
                loss_weight=config.loss_weight,
                examples=count,
                share=round(count / max(1, counts.total()), 4),
            )
        )
    return found


def _count(examples: Examples, positions: Iterable[int]) -> Counter[str]:
    """Count the examples of each subset at these sample indices."""
    indices = (int(examples.slots[examples.place(position)[1]]) for position in positions)
    return Counter(examples.subset(index).name for index in indices)


@dataclass(frozen=True)
class ValidationPlan:
    """The validation split, and how often it is evaluated."""

    examples: int
    """Of one validation; with max_examples more may be held out."""
    timesteps: list[int]
    """Timesteps at which each of them is evaluated."""
    validations: int
    """In the whole run: before it, every n steps, and after it."""

    @property
    def forward_passes(self) -> int:
        """Return the forward passes of validation in the whole run, over all processes."""
        return self.examples * len(self.timesteps) * self.validations


def plan_validation(
    recipe: TrainRecipe, sources: Sources, objective: Objective
) -> ValidationPlan | None:
    """Count validation examples; None if there are none.

    Raises:
        InputError: the base model has no such timestep, or does not accept the validation split.
    """
    config = recipe.validation
    if config is None:
        return None
    examples = still_examples(recipe, sources, objective)
    every, last = config.every_n_steps, recipe.max_train_steps
    times = 1 + last // every + bool(last % every)
    return ValidationPlan(len(examples), timesteps_of(config, objective), times)
