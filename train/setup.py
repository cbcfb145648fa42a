"""Construction of what the trainer works with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from inference.base_model import DTYPES, BaseModel
from inference.base_model_loading import frozen_dtype
from inference.config import ImageConfig
from inference.diffusion_model import DiffusionModel
from inference.errors import InputError
from inference.recipe import RecipeWarning
from inference.requests import check_size
from inference.video.arithmetic import FrameRule, check_positions
from inference.video.loading import load_model
from inference.video.model import VideoModel
from inference.video.positions import drop_learned_positions
from inference.video.quantization import is_packed, quantize
from train.clip_previews import ClipGrid
from train.config import TrainRecipe
from train.data.clip_buckets import BucketRule
from train.data.clip_folder import Clip
from train.data.clips import ClipExamples
from train.data.examples import Examples
from train.data.sources import Sources
from train.data.stream import Pace
from train.data.subsets import at_resolution
from train.data_config import DataConfig
from train.frozen_prior import with_prior
from train.objective_configs import OBJECTIVE_CONFIGS
from train.objectives import build_objective
from train.objectives.base import Member, Objective
from train.optimizer_config import LRSchedulerConfig, OptimizerConfig, parse_schedule
from train.previews import PromptGrid

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(recipe: TrainRecipe) -> Accelerator:
    """The accelerator of this process.

    Raises:
        InputError: several processes were asked for and only one was started, or mixed precision
            is not to be had on this device.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    plugin = GradientAccumulationPlugin(
        num_steps=recipe.gradient_accumulation_steps, sync_with_dataloader=False
    )
    precision = "no" if recipe.mixed_precision == "fp32" else recipe.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("mixed_precision: fp16 needs a GPU; bf16 and fp32 work on CPUs")
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=plugin,
        step_scheduler_with_optimizer=False,
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise InputError(
            f"{asked} processes were asked for, accelerate started {accelerator.num_processes}. On "
            "CPUs: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m train …"
        )
    return accelerator


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


def prepare(
    accelerator: Accelerator, objective: Objective, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Both wrapped for mixed precision and for several processes.

    With clip skip, and always in SDXL, the last layers of a text encoder in training get no
    gradients, and what stops learning gets none later on; DDP must know.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    skips = objective.trains("text_encoder") and objective.base.skips_last_text_layers
    accelerator.ddp_handler = DistributedDataParallelKwargs(
        find_unused_parameters=objective.stops_parts or skips
    )
    return accelerator.prepare(objective, optimizer)


def build_examples(
    recipe: TrainRecipe, sources: Sources, base: DiffusionModel, pace: Pace | None = None
) -> Examples:
    """The examples of a run.

    Args:
        recipe: as it is in a stage.
        sources: what the run learns from.
        base: says what sizes are possible.
        pace: where the stage begins in the run's stream, and which steps its positions belong to.

    Raises:
        InputError: the base model cannot take pictures or clips of this size or length.
    """
    # Concepts change how captions are read, a stage the sizes.
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
            base.is_image_to_video,
        )
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
    examples.lay_out(base.size_step, recipe.train_batch_size, pace.first_position)
    return examples


def check_buckets(examples: ClipExamples, base: VideoModel) -> None:
    """Tells where a model was not trained; see `check_positions`.

    Raises:
        InputError: it has learned positions, for another size than that of some clips.
    """
    rule, factor = FrameRule.of(base.vae), base.vae_scale_factor
    for frames, height, width in sorted(set(examples.buckets)):
        latent_frames = rule.latent_frames(frames)
        if note := check_positions(base.config, width, height, latent_frames, factor):
            warnings.warn(note, RecipeWarning, stacklevel=2)


def bucket_rule(config: DataConfig, base: VideoModel) -> BucketRule:
    """What sizes the examples of clips may have.

    Raises:
        InputError: the base model cannot take a size or a length that the recipe asks for.
    """
    clips = config.clips
    assert clips is not None
    factor = base.vae_scale_factor
    height = clips.height or base.config.sample_height * factor
    width = clips.width or base.config.sample_width * factor
    rule = BucketRule(clips, height, width, base.size_step, FrameRule.of(base.vae))
    rule.check()
    return rule


def put_aside(base: DiffusionModel, examples: Examples) -> None:
    """Takes what of a video model has no more to do in the steps off the GPU: T5, and the VAE.

    Captions are encoded by now. (T5-XXL alone takes 9.5 GB. Drawing takes them back for a while.)
    """
    if not isinstance(base, VideoModel):
        return
    base.text_encoder.to("cpu")
    if examples.latents is not None and not base.is_image_to_video:
        base.vae.to("cpu")


def build_grid(
    recipe: TrainRecipe, base: DiffusionModel, images: dict[str, ImageConfig], folder: Path
) -> PromptGrid | ClipGrid:
    """What is drawn while training.

    Raises:
        InputError: a video model cannot draw one of the clips.
    """
    config = recipe.sampling
    if isinstance(base, VideoModel):
        clips = [clip for clip in config.clips.values() if clip is not None]
        return ClipGrid(base, clips, folder, recipe.image_condition.latent_scale)
    assert isinstance(base, BaseModel)
    return PromptGrid(base, images, config.batch_size, folder)


def build_optimization(
    config: OptimizerConfig, members: Mapping[str, Member]
) -> tuple[Optimizer, LRScheduler]:
    """One optimizer, and the course of every member's learning rate."""
    groups = [
        group
        for name, member in members.items()
        for group in parameter_groups(member.recipe.optimizer, member.objective, name)
    ]
    optimizer = build_optimizer(config, groups)
    courses = {
        name: rate_course(
            member.recipe.lr_scheduler,
            member.recipe.optimizer.learning_rate,
            member.recipe.max_train_steps,
        )
        for name, member in members.items()
    }
    return optimizer, build_lr_scheduler(optimizer, courses)


def build_optimizer(config: OptimizerConfig, groups: Sequence[Mapping[str, object]]) -> Optimizer:
    """The optimizer of all groups; see `parameter_groups`."""
    options = {
        "lr": config.learning_rate,
        "betas": tuple(config.betas),
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    if config.type == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **options)
    return torch.optim.AdamW(map(dict, groups), fused=True, **options)


def parameter_groups(
    config: OptimizerConfig, objective: nn.Module, member: str = ""
) -> list[dict[str, object]]:
    """A group for each named child of the objective, with its own learning rate.

    Its name is the child's, after the member's in a combined objective.

    Raises:
        InputError: a learning rate names no part of the objective.
    """
    parts = {name: list(part.parameters()) for name, part in objective.named_children()}
    parts = {name: parameters for name, parameters in parts.items() if parameters}
    unknown = [name for name in config.learning_rates if name not in parts]
    if unknown:
        where = f"objective.members.{member}" if member else "optimizer"
        raise InputError(
            f"{where}.learning_rates: {', '.join(unknown)} is not trained; this objective trains "
            f"{', '.join(parts)}"
        )
    return [
        {
            "name": f"{member}.{name}" if member else name,
            "params": parameters,
            "lr": config.learning_rates.get(name, config.learning_rate),
            "weight_decay": config.weight_decay,
        }
        for name, parameters in parts.items()
    ]


def build_lr_scheduler(
    optimizer: Optimizer, courses: Mapping[str, Callable[[int], float]]
) -> LRScheduler:
    """Steps every group's learning rate, once per optimizer step.

    Args:
        optimizer: its groups are named as `parameter_groups` does.
        courses: that of each member; a single objective's has an empty name.
    """
    names = [group["name"].rpartition(".")[0] for group in optimizer.param_groups]
    return LambdaLR(optimizer, [courses[name] for name in names])


def rate_course(config: LRSchedulerConfig, rate: float, steps: int) -> Callable[[int], float]:
    """What the usual learning rate `rate` is multiplied by at each of so many steps."""
    if config.schedule is not None:
        return schedule_course(config.schedule, config.warmup_steps, rate)
    from transformers.optimization import get_scheduler

    options = {"polynomial": {"power": config.power}}.get(config.type, {})
    if config.type == "cosine_with_restarts":
        options = {"num_cycles": config.num_cycles}
    lr_scheduler = get_scheduler(
        "constant_with_warmup" if config.type == "constant" else config.type,
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate or 1.0),
        num_warmup_steps=config.warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs=options,
    )
    assert isinstance(lr_scheduler, LambdaLR)
    return lr_scheduler.lr_lambdas[0]


def schedule_course(schedule: str, warmup_steps: int, rate: float) -> Callable[[int], float]:
    """A1111's rates by step, warmed up if asked; the first step is step 0."""
    entries = parse_schedule(schedule)

    def factor(step: int) -> float:
        value = next((value for value, until in entries if until is None or step < until), 0.0)
        warmth = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return value / rate * warmth

    return factor


def enable_gradient_checkpointing(objective: Objective) -> None:
    """Switches gradient checkpointing on in the networks that gradients flow through."""
    base = objective.base
    base.denoiser.enable_gradient_checkpointing()
    base.vae.enable_gradient_checkpointing()
    for encoder in (e for name, e in base.text_encoders.items() if objective.trains(name)):
        name = "activation_checkpointing_enable"  # what newer versions of transformers call it
        getattr(encoder, name if hasattr(encoder, name) else "gradient_checkpointing_enable")()
