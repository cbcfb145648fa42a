"""Rules that concern several sections of a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.config import prefixed, swapping_faults
from train.config.clips import ImageConditionConfig
from train.config.containers import is_address
from train.config.data import has_streamed
from train.config.folders import folder_faults
from train.config.objectives import (
    CombinedConfig,
    DreamboothConfig,
    TextualInversionConfig,
    WholePartsConfig,
)
from train.config.optimization import schedule_faults
from train.config.recipe import TrainRecipe, largest_batch, named_stages, stage_recipes
from train.config.rules import Faults, at_least, name_fault

if TYPE_CHECKING:
    from train.config.data import DataConfig


@dataclass(frozen=True)
class Rule:
    """A condition on several keys of a recipe, and the message that is reported if it holds."""

    key: str
    applies: Callable[[TrainRecipe], bool]
    message: str
    """May contain values of the recipe: `{recipe.max_train_steps}`."""
    sentence: str
    """The rule in general, for docs/recipes.md."""

    def __call__(self, recipe: TrainRecipe) -> Faults:
        """Yield the key and message if the rule applies."""
        if self.applies(recipe):
            yield self.key, self.message.format(recipe=recipe)

    @property
    def sentences(self) -> Sentences:
        """Return the key and its sentence."""
        return ((self.key, self.sentence),)


@dataclass(frozen=True)
class Rules:
    """Conditions that are computed together, with all their keys and sentences."""

    faults: Callable[[TrainRecipe], Faults]
    sentences: Sentences

    def __call__(self, recipe: TrainRecipe) -> Faults:
        """Yield the key and message of each condition that applies."""
        yield from self.faults(recipe)


Check = Rule | Rules
Sentences = tuple[tuple[str, str], ...]
"""Pairs of (recipe key, sentence); in a key, `<name>` stands for any name."""


def _trains_vae(recipe: TrainRecipe) -> bool:
    return not recipe.objective.learns_from_captions


def _trains_base_weights(recipe: TrainRecipe) -> bool:
    return isinstance(recipe.objective, WholePartsConfig)


def _accumulates(recipe: TrainRecipe) -> bool:
    return any(one.gradient_accumulation_steps > 1 for one in stage_recipes(recipe))


def _has_prior_prediction(recipe: TrainRecipe) -> bool:
    return recipe.loss.prior == "prediction"


def _misses_prior_target(recipe: TrainRecipe) -> bool:
    target = recipe.loss.prior_weight_target
    return target is not None and target > recipe.max_train_steps


def _swapping_faults(recipe: TrainRecipe) -> Faults:
    """Yield swapping of blocks that cannot be recomputed, or are trained."""
    key = "memory.blocks_to_swap"
    if not recipe.memory.blocks_to_swap:
        return
    if not recipe.gradient_checkpointing:
        yield (
            key,
            "needs gradient_checkpointing: true; otherwise the backward pass keeps the weights of "
            "all blocks on the GPU",
        )
    if _trains_base_weights(recipe):
        yield (
            key,
            f"is for frozen weights, and objective.type: {recipe.objective.type} trains those of "
            "the blocks, which stay on the GPU; leave it out, or train a lora",
        )
    yield from swapping_faults(recipe.memory, recipe.base_model)


def _number_faults(recipe: TrainRecipe) -> Faults:
    """Yield numbers that are out of range."""
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


def _name_faults(recipe: TrainRecipe) -> Faults:
    """Yield a name that no folder can have."""
    if (fault := name_fault(recipe.name, "folder")) is not None:
        yield "name", fault


def _schedule_faults(recipe: TrainRecipe) -> Faults:
    """Yield the errors of the LR schedule."""
    steps = "max_train_steps", recipe.max_train_steps
    yield from schedule_faults(recipe.lr_scheduler, "lr_scheduler", *steps)
    if recipe.lr_scheduler.schedule and not recipe.optimizer.learning_rate:
        yield "optimizer.learning_rate", "must be above 0: the schedule is relative to it"
    if isinstance(recipe.objective, CombinedConfig):
        yield from recipe.objective.faults_within(*steps)


def _size_faults(name: str, resolution: int | None, data: DataConfig) -> Faults:
    """Yield sizes that do not follow the resolution of a stage."""
    if resolution is None:
        return
    parts = [one for one in data.named_subsets.values() if not one.is_reg] or [data]
    if any(one.buckets is not None and not one.buckets.follow_resolution for one in parts):
        yield f"stages.{name}.resolution", "has no effect: data.buckets sets the sizes"
    for subset, one in data.named_subsets.items():
        if not one.is_reg and one.resolution != data.resolution:
            yield (
                f"stages.{name}.resolution",
                f"is not clear: data.subsets.{subset} has a resolution too; leave one out",
            )


def stage_faults(recipe: TrainRecipe) -> Faults:
    """Yield the errors of a recipe's stages, taken together."""
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
                yield f"stages.{name}.{key}", "is for clips, which need data.clips"
            elif clips.buckets:
                yield (
                    f"stages.{name}.{key}",
                    "cannot go with data.clips.buckets: these set the sizes",
                )
        yield from _size_faults(name, stage.resolution, recipe.data)
        if stage.resolution is not None and clips is not None:
            yield f"stages.{name}.resolution", "is for images; clips have height and width"


def zero_faults(recipe: TrainRecipe) -> Faults:
    """Yield what DeepSpeed's ZeRO cannot do, which divides trained weights as flat fp32 tensors."""
    strategy = recipe.parallel.strategy
    if not strategy.startswith("zero"):
        return
    memory = recipe.memory
    refused = f"cannot go with parallel: {strategy}"
    if memory.fused_backward:
        yield "memory.fused_backward", f"{refused}, which takes the step of all weights together"
    if memory.optimizer_on_cpu:
        yield "memory.optimizer_on_cpu", f"{refused}: set parallel.cpu_offload: optimizer"
    if memory.trained_weights != "fp32":
        yield "memory.trained_weights", f"{refused}, where trained weights are fp32"
    if recipe.max_grad_value is not None:
        yield "max_grad_value", f"{refused}, which clips by norm alone: set max_grad_norm"
    if recipe.mixed_precision == "fp16":
        yield "mixed_precision", f"fp16 {refused}: take bf16 or fp32"
    if recipe.optimizer.type != "adamw":
        yield (
            "optimizer.type",
            f"{recipe.optimizer.type} {refused}: its state is cut across tensors, which is exact "
            "for adamw alone",
        )
    yield from _zero_objective_faults(recipe, refused)
    if recipe.parallel.context > 1:
        yield "parallel.context", f"{refused}: take ddp or fsdp"
    if strategy == "zero3":
        yield from _zero3_faults(recipe, refused)


def _zero_objective_faults(recipe: TrainRecipe, refused: str) -> Faults:
    """Yield objectives of which parts get no gradients, or that change weights by themselves."""
    objective = recipe.objective
    if objective.type not in ("lora", "dreambooth", "text_to_image"):
        yield (
            "objective.type",
            f"{objective.type} {refused}, which is for lora, dreambooth and text_to_image",
        )
    if isinstance(objective, DreamboothConfig) and objective.stop_text_encoder_training != 1.0:
        yield (
            "objective.type",
            f"dreambooth with stop_text_encoder_training {refused}: the optimizer would go on "
            "changing the text encoder without gradients",
        )


def _zero3_faults(recipe: TrainRecipe, refused: str) -> Faults:
    """Yield what needs whole weights in each process."""
    memory = recipe.memory
    whole = f"{refused}, where each process holds a share of each weight"
    if recipe.base_model.quantization is not None:
        yield "base_model.quantization", whole
    if memory.blocks_to_swap:
        yield "memory.blocks_to_swap", whole
    if memory.offload == "model_offload":
        yield "memory.offload", f"model_offload {whole}: set parallel.cpu_offload: all"
    if memory.activation_offload:
        yield "memory.activation_offload", whole
    if recipe.speed.compile != "none":
        yield "speed.compile", whole
    if _has_prior_prediction(recipe):
        yield "loss.prior", f"prediction {refused}: take zero2"


def streaming_faults(recipe: TrainRecipe) -> Faults:
    """Yield settings that cannot go with streaming."""
    data, validation = recipe.data, recipe.validation
    for name, one in data.named_subsets.items():
        if one.streaming not in (None, data.streaming):
            yield (
                f"data.subsets.{name}.streaming",
                "is the same for the whole run: set data.streaming; null downloads a subset "
                "completely",
            )
    if not has_streamed(data):
        return
    if data.cache == "auto":
        yield (
            "data.cache",
            "auto would keep the latents of all streamed images in memory; set disk, which "
            "encodes each once and then downloads nothing more, or off",
        )
    for name in (name for name, one in data.named_subsets.items() if one.is_reg):
        yield (
            f"data.subsets.{name}.is_reg",
            "class images have their own order, which streamed images cannot follow: "
            "leave data.streaming out, or take them from another run",
        )
    if validation is not None and is_address(validation.path):
        yield "validation.path", "is not streamed: name a folder or container on this disk"
    is_cached = data.cache != "off" and recipe.objective.learns_from_captions
    if validation is not None and validation.split is not None and not is_cached:
        yield (
            "validation.split",
            "would download all shards at each validation, as nothing is cached (data.cache: disk "
            "does so, but not for objective.type: autoencoder); set validation.path",
        )


ELEMENTWISE = (
    "adamw",
    *(
        f"torch.optim:{name}"
        for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad")
    ),
)
"""Optimizers that compute each number of a weight's step from that number's gradients alone."""


def _fully_shards(recipe: TrainRecipe) -> bool:
    return recipe.parallel.strategy == "fsdp"


def _fsdp_rule(key: str, applies: Callable[[TrainRecipe], bool], why: str, value: str = "") -> Rule:
    """Return the refusal of a key with FSDP2.

    Args:
        key: of the recipe.
        applies: whether it is set.
        why: the reason, and the remedy.
        value: which value of the key is refused, if it has others; else any.
    """
    of = f"{value} " if value else ""
    subject = f"`{value}` is" if value else "Is"
    return Rule(
        key,
        lambda recipe: _fully_shards(recipe) and applies(recipe),
        f"{of}cannot go with parallel.strategy: fsdp: {why}",
        f"{subject} refused with `parallel.strategy: fsdp`.",
    )


FSDP_REFUSALS: tuple[Rule, ...] = (
    _fsdp_rule(
        "memory.fused_backward",
        lambda r: r.memory.fused_backward,
        "gradients are added up over the processes after the backward pass of a block; leave it "
        "out, a process holds its share of the gradients alone",
    ),
    _fsdp_rule(
        "memory.blocks_to_swap",
        lambda r: bool(r.memory.blocks_to_swap),
        "a block is whole only while it computes; set it to 0, and parallel.cpu_offload=all to "
        "keep the shares in the system's memory",
    ),
    _fsdp_rule(
        "memory.optimizer_on_cpu",
        lambda r: r.memory.optimizer_on_cpu,
        "parallel.cpu_offload=all keeps shares and optimizer in the system's memory",
    ),
    _fsdp_rule(
        "memory.trained_weights",
        lambda r: r.memory.trained_weights == "bf16",
        "steps of bf16 weights are rounded by draws for whole tensors; leave it at fp32, of which "
        "each process has a share",
        "bf16",
    ),
    _fsdp_rule(
        "memory.activation_offload",
        lambda r: r.memory.activation_offload,
        "it would move the weights of the blocks along; set gradient_checkpointing=true",
    ),
    _fsdp_rule(
        "base_model.quantization",
        lambda r: r.base_model.quantization is not None,
        "packed weights are not divided; leave it out, a process holds its share of the weights "
        "alone",
    ),
    _fsdp_rule(
        "mixed_precision",
        lambda r: r.mixed_precision == "fp16",
        "the loss scale is checked on whole gradients; take bf16 or fp32",
        "fp16",
    ),
    _fsdp_rule(
        "speed.compile",
        lambda r: r.speed.compile != "none",
        "blocks are gathered between their calls; set it to none",
    ),
    _fsdp_rule(
        "speed.channels_last",
        lambda r: r.speed.channels_last,
        "weights are divided along their first dimension; set it to false",
    ),
    _fsdp_rule(
        "loss.prior_copy",
        lambda r: r.loss.prior_copy,
        "the copy would be whole in each process; leave it out",
    ),
    Rule(
        "parallel.strategy",
        lambda r: _fully_shards(r) and _trains_vae(r),
        "fsdp cannot go with objective.type: {recipe.objective.type}: a VAE is small and has no "
        "blocks that could be divided; take ddp",
        "`fsdp` is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "optimizer.type",
        lambda r: _fully_shards(r) and r.optimizer.type not in ELEMENTWISE,
        "{recipe.optimizer.type} cannot go with parallel.strategy: fsdp: it computes a step from "
        "more than the numbers of a share, or is not known to do without; expected one of "
        f"{', '.join(ELEMENTWISE)}",
        "With `parallel.strategy: fsdp`, must be an optimizer that computes the step of each "
        f"number from its own gradients: {', '.join(f'`{name}`' for name in ELEMENTWISE)}.",
    ),
)


REFUSALS: tuple[Check, ...] = (
    *FSDP_REFUSALS,
    Rules(
        _number_faults,
        (
            ("max_train_steps", "Must be at least 1."),
            ("train_batch_size", "Must be at least 1."),
            ("gradient_accumulation_steps", "Must be at least 1."),
            ("log_every_n_steps", "Must be at least 1."),
            ("seed", "Must lie in 0 … 2^63-1."),
            ("max_grad_norm", "Must be above 0."),
            ("max_grad_value", "Must be above 0."),
        ),
    ),
    Rules(
        _swapping_faults,
        (
            (
                "memory.blocks_to_swap",
                "Is refused without `gradient_checkpointing`, for an objective that trains whole "
                "parts, and with `base_model.quantization: nf4` and `int8`.",
            ),
        ),
    ),
    Rule(
        "speed.compile",
        lambda r: r.speed.compile != "none" and r.parallel.context > 1,
        "cannot be used with parallel.context, whose attention waits for other processes",
        "Is refused with `parallel.context`.",
    ),
    Rule(
        "overwrite",
        lambda r: r.overwrite and r.resume,
        "cannot go with resume: one starts over, the other continues",
        "Is refused with `resume`.",
    ),
    Rules(
        _name_faults,
        (("name", "Must not be empty, contain `/` or begin with a dot."),),
    ),
    Rules(
        _schedule_faults,
        (
            ("lr_scheduler.schedule", "Is refused if it ends before `max_train_steps`."),
            ("lr_scheduler.warmup_steps", "Must be below `max_train_steps`."),
            ("optimizer.learning_rate", "Must be above 0 with `lr_scheduler.schedule`."),
            (
                "objective.members.<name>.lr_scheduler.schedule",
                "Is refused if it ends before the member's `stop_step`, or `max_train_steps` "
                "without one.",
            ),
            (
                "objective.members.<name>.lr_scheduler.warmup_steps",
                "Must be below the member's `stop_step`, or `max_train_steps` without one.",
            ),
            ("objective.members.<name>.stop_step", "Must not be above `max_train_steps`."),
            (
                "max_train_steps",
                "With `objective.type: combined`, must not be above the largest `stop_step` if "
                "every member has one.",
            ),
        ),
    ),
    Rules(
        stage_faults,
        (
            ("stages.<name>.steps", "Must be given for each stage but the last."),
            ("max_train_steps", "With `stages`, must be the sum of their `steps`."),
            *(
                (
                    f"stages.<name>.{key}",
                    "Is refused without `data.clips` and with `data.clips.buckets`.",
                )
                for key in ("frames", "height", "width")
            ),
            (
                "stages.<name>.resolution",
                "Is refused with `data.clips`, with `data.buckets` that set `area`, `sizes` or "
                "another `preset` than kohya, and with a subset that has its own `resolution`.",
            ),
        ),
    ),
    Rules(
        folder_faults,
        (
            *(
                (key, "Must not lie within a folder of the data, unless below a hidden folder.")
                for key in (
                    "output_dir",
                    "data.cache_dir",
                    "data.streaming.folder",
                    "validation.path",
                )
            ),
            *(
                (key, "Must not lie within `validation.path`.")
                for key in (
                    "data.path",
                    "data.subsets.<name>.path",
                    "data.concepts.<name>.instance_data_dir",
                    "data.concepts.<name>.class_data_dir",
                )
            ),
        ),
    ),
    Rules(
        lambda r: prefixed(r.speed.conflicts(r.deterministic, r.base_model, r.memory)),
        (
            ("speed.attention", "Is refused with `deterministic: true`, except for `math`."),
            ("speed.cudnn_benchmark", "Is refused with `deterministic: true`."),
            (
                "speed.compile",
                "Is refused with `deterministic: true`, `base_model.quantization` and "
                "`memory.blocks_to_swap`.",
            ),
        ),
    ),
    Rule(
        "base_model.quantization",
        lambda r: (
            r.base_model.quantization is not None and (_trains_base_weights(r) or _trains_vae(r))
        ),
        "{recipe.base_model.quantization} packs weights, which cannot be trained then; it goes "
        "with objective.type: lora, textual_inversion, hypernetwork and combined, not with "
        "{recipe.objective.type}",
        "Training refuses it with `objective.type` dreambooth, text_to_image and autoencoder.",
    ),
    Rule(
        "base_model.vae",
        lambda r: r.base_model.vae is not None and r.data.clips is not None,
        "is for image models; a video model, which data.clips trains, has its own",
        "Is refused with `data.clips`.",
    ),
    Rule(
        "data.masks",
        lambda r: r.data.has_masks and r.data.clips is not None,
        "are for images; clips (data.clips) count as a whole",
        "Is refused with `data.clips`.",
    ),
    Rule(
        "data.masks",
        lambda r: r.data.has_masks and _trains_vae(r),
        "weigh the error of latents, which objective.type: {recipe.objective.type} has none of",
        "Is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "loss.prior",
        lambda r: _has_prior_prediction(r) and r.data.clips is not None,
        "prediction is for images; clips (data.clips) have no class images",
        "`prediction` is refused with `data.clips`.",
    ),
    Rule(
        "loss.prior",
        lambda r: _has_prior_prediction(r) and _trains_base_weights(r) and not r.loss.prior_copy,
        "prediction needs the original base model, and objective.type: {recipe.objective.type} "
        "changes its weights: loss.prior_copy=true keeps a second copy of them, 4 bytes for each "
        "that is trained (3.4 GB for the UNet of SD 1.5, 10 GB for SDXL's); a lora needs none",
        "`prediction` is refused without `loss.prior_copy` for an objective that trains the base "
        "model's own weights.",
    ),
    Rules(
        streaming_faults,
        (
            (
                "data.subsets.<name>.streaming",
                "Must be the same as `data.streaming`; `null` downloads a subset completely.",
            ),
            ("data.cache", "`auto` is refused with streamed images (`data.streaming`)."),
            (
                "data.subsets.<name>.is_reg",
                "Is refused with streamed images (`data.streaming`).",
            ),
            (
                "validation.path",
                "With streamed images (`data.streaming`), must not be an address.",
            ),
            (
                "validation.split",
                "With streamed images (`data.streaming`), is refused with `data.cache: off` and "
                "with `objective.type: autoencoder`.",
            ),
        ),
    ),
    Rule(
        "memory.fused_backward",
        lambda r: r.memory.fused_backward and r.max_grad_norm is not None,
        "frees each gradient before the norm of all is known, so that nothing can be clipped by "
        "it: set max_grad_norm=null (max_grad_value clips each value)",
        "Is refused without `max_grad_norm: null`.",
    ),
    Rule(
        "memory.fused_backward",
        lambda r: r.memory.fused_backward and _accumulates(r),
        "changes the weights in each backward pass, and gradient_accumulation_steps adds up the "
        "gradients of several: set it to 1, also in stages; a larger train_batch_size with "
        "gradient_checkpointing takes its place",
        "Is refused with `gradient_accumulation_steps` above 1.",
    ),
    Rule(
        "memory.fused_backward",
        lambda r: r.memory.fused_backward and r.mixed_precision == "fp16",
        "cannot go with mixed_precision: fp16, whose loss scale is checked on all gradients "
        "before any weight changes: take bf16 or fp32",
        "Is refused with `mixed_precision: fp16`, and with several processes.",
    ),
    Rule(
        "memory.trained_weights",
        lambda r: r.memory.trained_weights == "bf16" and r.mixed_precision != "bf16",
        "bf16 needs mixed_precision=bf16, got {recipe.mixed_precision}",
        "`bf16` is refused without `mixed_precision: bf16`.",
    ),
    Rules(
        zero_faults,
        (
            *(
                (key, "Is refused with `parallel: zero1` to `zero3`.")
                for key in (
                    "memory.fused_backward",
                    "memory.optimizer_on_cpu",
                    "max_grad_value",
                    "parallel.context",
                )
            ),
            ("memory.trained_weights", "`bf16` is refused with `parallel: zero1` to `zero3`."),
            ("mixed_precision", "`fp16` is refused with `parallel: zero1` to `zero3`."),
            ("optimizer.type", "Must be `adamw` with `parallel: zero1` to `zero3`."),
            (
                "objective.type",
                "Must be lora, text_to_image or dreambooth (without stop_text_encoder_training) "
                "with `parallel: zero1` to `zero3`.",
            ),
            *(
                (key, "Is refused with `parallel: zero3`.")
                for key in (
                    "base_model.quantization",
                    "memory.blocks_to_swap",
                    "memory.activation_offload",
                    "speed.compile",
                )
            ),
            ("memory.offload", "`model_offload` is refused with `parallel: zero3`."),
            ("loss.prior", "`prediction` is refused with `parallel: zero3`."),
        ),
    ),
    Rule(
        "data.clips.pack",
        lambda r: r.data.packs_clips and _trains_vae(r),
        "is for the transformer; objective.type: {recipe.objective.type} trains the VAE",
        "Is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "parallel.context",
        lambda r: r.parallel.context > 1 and _trains_vae(r),
        "processes share clips with a frozen VAE alone, and objective.type: "
        "{recipe.objective.type} trains it: take context: 1, where each has clips of its own",
        "Above 1 is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "vae_tiling",
        lambda r: bool(r.vae_tiling) and _trains_vae(r),
        "is for a VAE that is not trained; objective.type: {recipe.objective.type} trains it on "
        "whole images",
        "`true` is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "data.concepts",
        lambda r: r.data.has_concepts and _trains_vae(r),
        "need prompts, which objective.type: {recipe.objective.type} has none of",
        "Is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "data.subsets",
        lambda r: r.data.has_prior and bool(r.data.subsets) and _trains_vae(r),
        "with is_reg need prompts, which objective.type: {recipe.objective.type} has none of",
        "A subset with `is_reg` is refused with `objective.type: autoencoder`.",
    ),
    Rule(
        "data.concepts",
        lambda r: r.objective.needs_concepts and not (r.data.has_concepts or r.data.subsets),
        "objective.type: {recipe.objective.type} learns concepts: give data.concepts (or "
        "data.concepts_list), or take objective.type: text_to_image for a folder of images with "
        "captions",
        "Must be given for `objective.type: dreambooth`, or `data.concepts_list`, or "
        "`data.subsets`.",
    ),
)
"""Combinations of keys that are rejected, in the order in which they are reported."""


FOR_CLIPS = "has no effect: it is for clips (data.clips)"
WITHOUT_CLIPS = "Has no effect without `data.clips`."
SHOWS_RECONSTRUCTIONS = (
    "has no effect: objective.type: {recipe.objective.type} shows reconstructions instead"
)
WITHOUT_CLASS_IMAGES = (
    "Has no effect without class images (`num_class_images_per` of a concept, `is_reg` of a "
    "subset)."
)


def _unused_prior_weight(recipe: TrainRecipe) -> Faults:
    """Yield weights of class images that do nothing without any."""
    if recipe.data.has_prior:
        return
    why = "has no effect: no concept has class images (num_class_images_per)"
    if recipe.data.subsets:
        why = "has no effect: no subset is_reg"
    if recipe.loss.prior_weight != 1.0:
        yield "loss.prior_weight", why
    if recipe.loss.prior_weight_min is not None:
        yield "loss.prior_weight_min", why


UNUSED: tuple[Check, ...] = (
    Rules(
        lambda r: prefixed(r.speed.without_effect(r.base_model, r.data.clips is not None)),
        (
            ("speed.attention", "Has no effect with `base_model.attention: eager`."),
            ("speed.channels_last", "Has no effect with `data.clips`."),
        ),
    ),
    Rule(
        "memory.ema_on_cpu",
        lambda r: r.memory.ema_on_cpu and r.ema is None,
        "has no effect without ema",
        "Has no effect without `ema`.",
    ),
    Rule(
        "parallel.gradient_compression",
        lambda r: (
            r.parallel.gradient_compression == r.memory.trained_weights == "bf16"
            and r.parallel.strategy == "ddp"
        ),
        "has no effect with memory.trained_weights: bf16, whose gradients are bf16 anyway",
        "Has no effect with `memory.trained_weights: bf16`.",
    ),
    Rule(
        "loss.motion_ratio",
        lambda r: r.data.clips is None and bool(r.loss.motion_ratio),
        FOR_CLIPS,
        WITHOUT_CLIPS,
    ),
    Rule(
        "image_condition",
        lambda r: r.data.clips is None and r.image_condition != ImageConditionConfig(),
        FOR_CLIPS,
        WITHOUT_CLIPS,
    ),
    Rule(
        "sampling.clips",
        lambda r: r.data.clips is None and bool(r.sampling.clips),
        FOR_CLIPS,
        WITHOUT_CLIPS,
    ),
    Rule(
        "drop_learned_positions",
        lambda r: r.data.clips is None and r.drop_learned_positions,
        FOR_CLIPS,
        WITHOUT_CLIPS,
    ),
    Rule(
        "sampling.images",
        lambda r: r.data.clips is not None and bool(r.sampling.images),
        "has no effect: a video model draws sampling.clips",
        "Has no effect with `data.clips`.",
    ),
    Rule(
        "data.clips.pack",
        lambda r: r.data.packs_clips and largest_batch(r) == 1,
        "has no effect with train_batch_size: 1, the clips of a row",
        "Has no effect with `train_batch_size: 1`.",
    ),
    Rule(
        "sampling.images",
        lambda r: _trains_vae(r) and bool(r.sampling.images),
        SHOWS_RECONSTRUCTIONS,
        "Has no effect with `objective.type: autoencoder`.",
    ),
    Rule(
        "sampling.sanity_prompt",
        lambda r: _trains_vae(r) and r.sampling.sanity_prompt is not None,
        SHOWS_RECONSTRUCTIONS,
        "Has no effect with `objective.type: autoencoder`.",
    ),
    Rules(
        _unused_prior_weight,
        (
            ("loss.prior_weight", WITHOUT_CLASS_IMAGES),
            ("loss.prior_weight_min", WITHOUT_CLASS_IMAGES),
        ),
    ),
    Rule(
        "loss.prior_weight",
        lambda r: r.data.has_prior and r.loss.prior_weight == 0 and not r.loss.prior_weight_min,
        "0 gives class images no effect, while each costs as much as an instance image; "
        "num_class_images_per: 0 (or no subset with is_reg) leaves them out",
        "With 0, class images have no effect, unless `loss.prior_weight_min` is given.",
    ),
    Rule(
        "loss.prior_weight_target",
        _misses_prior_target,
        "{recipe.loss.prior_weight_target} is not reached: max_train_steps is "
        "{recipe.max_train_steps}",
        "Is not reached if it is above `max_train_steps`.",
    ),
    Rule(
        "loss.prior_copy",
        lambda r: r.loss.prior_copy and not (_trains_base_weights(r) and _has_prior_prediction(r)),
        "has no effect but with loss.prior: prediction of an objective that trains the base "
        "model's own weights",
        "Has no effect without `loss.prior: prediction`, and for an objective that does not train "
        "the base model's own weights.",
    ),
    Rule(
        "loss.prior",
        lambda r: _has_prior_prediction(r) and not r.data.has_prior,
        "has no effect: there are no class images",
        "`prediction` has no effect without class images.",
    ),
    Rule(
        "loss.prior",
        lambda r: (
            _has_prior_prediction(r)
            and r.data.has_prior
            and isinstance(r.objective, TextualInversionConfig)
        ),
        "has no effect: prompts of class images do not contain the new token",
        "`prediction` has no effect with `objective.type: textual_inversion`.",
    ),
    Rule(
        "memory.blocks_to_swap",
        lambda r: bool(r.memory.blocks_to_swap) and _trains_vae(r),
        "has no effect: objective.type: {recipe.objective.type} does not use the denoiser",
        "Has no effect with `objective.type: autoencoder`.",
    ),
    Rule(
        "validation.timesteps",
        lambda r: r.validation is not None and bool(r.validation.timesteps) and _trains_vae(r),
        "has no effect: objective.type: {recipe.objective.type} has none",
        "Has no effect with `objective.type: autoencoder`.",
    ),
)
"""Keys that have no effect, given the others; each causes a warning."""


def rule_sentences() -> dict[str, list[str]]:
    """Return what docs/recipes.md says of each key: its refusals, then where it has no effect."""
    found: dict[str, list[str]] = {}
    for check in (*REFUSALS, *UNUSED):
        for key, sentence in check.sentences:
            found.setdefault(key, []).append(sentence)
    return found


def strategy_faults(recipe: TrainRecipe) -> Faults:
    """Yield the keys that cannot go with the recipe's strategy of parallelism."""
    for check in FSDP_REFUSALS:
        yield from check(recipe)


def recipe_faults(recipe: TrainRecipe) -> Faults:
    """Yield every combination of keys that is rejected."""
    for check in REFUSALS:
        yield from check(recipe)


def recipe_idle(recipe: TrainRecipe) -> Faults:
    """Yield every key that has no effect, given the others."""
    for check in UNUSED:
        yield from check(recipe)
