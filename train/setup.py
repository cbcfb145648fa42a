"""Construction of what the trainer works with."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from inference.base_model import DTYPES, BaseModel, load_base_model
from inference.errors import InputError
from inference.sampling import check_size
from train.config import LRSchedulerConfig, OptimizerConfig, TrainRecipe, parse_schedule
from train.objectives import build_objective
from train.objectives.base import Objective

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
    """
    in_fp32 = replace(recipe.base_model, vae_precision="fp32")
    base = load_base_model(in_fp32, "fp32")
    objective = build_objective(recipe, base)
    base.dtype = DTYPES[recipe.mixed_precision]
    for name, part in base.parts.items():
        for parameter in part.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(part_dtype(recipe, name))
    base.to(device)
    return objective.to(device)


def part_dtype(recipe: TrainRecipe, part: str) -> torch.dtype:
    """The number format in which a part of the base model is frozen, and drawn with."""
    own = recipe.base_model.vae_precision if part == "vae" else None
    return DTYPES[own or recipe.mixed_precision]


def prepare(
    accelerator: Accelerator, objective: Objective, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Both wrapped for mixed precision and for several processes.

    With clip skip, the last layers of a text encoder in training get no gradients, and what stops
    learning gets none later on; DDP must know.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    trains_text = "text_encoder" in dict(objective.named_children())
    accelerator.ddp_handler = DistributedDataParallelKwargs(
        find_unused_parameters=objective.stops_parts
        or (trains_text and objective.base.clip_skip > 1)
    )
    return accelerator.prepare(objective, optimizer)


def example_resolution(recipe: TrainRecipe, base: BaseModel) -> int:
    """Side of the examples in pixels.

    Raises:
        InputError: the base model cannot take pictures of this size.
    """
    resolution = recipe.data.resolution or base.resolution
    check_size("data.resolution", resolution, base.size_step)
    return resolution


def build_optimizer(config: OptimizerConfig, objective: nn.Module) -> Optimizer:
    """One parameter group for each named child of the objective, with its own learning rate.

    Raises:
        InputError: a learning rate names no part of the objective.
    """
    parts = {name: list(part.parameters()) for name, part in objective.named_children()}
    parts = {name: parameters for name, parameters in parts.items() if parameters}
    unknown = [name for name in config.learning_rates if name not in parts]
    if unknown:
        raise InputError(
            f"optimizer.learning_rates: {', '.join(unknown)} is not trained; this objective trains "
            f"{', '.join(parts)}"
        )
    groups = [
        {
            "name": name,
            "params": parameters,
            "lr": config.learning_rates.get(name, config.learning_rate),
        }
        for name, parameters in parts.items()
    ]
    options = {
        "lr": config.learning_rate,
        "betas": tuple(config.betas),
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    if config.type == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def build_lr_scheduler(
    config: LRSchedulerConfig, optimizer: Optimizer, max_train_steps: int
) -> LRScheduler:
    """The learning rate's course, stepped once per optimizer step."""
    if config.schedule is not None:
        return build_schedule(config, optimizer)
    from transformers.optimization import get_scheduler

    options = {"polynomial": {"power": config.power}}.get(config.type, {})
    if config.type == "cosine_with_restarts":
        options = {"num_cycles": config.num_cycles}
    name = "constant_with_warmup" if config.type == "constant" else config.type
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=max_train_steps,
        scheduler_specific_kwargs=options,
    )


def build_schedule(config: LRSchedulerConfig, optimizer: Optimizer) -> LRScheduler:
    """A1111's rates by step, warmed up if asked; the first step is step 0."""
    entries = parse_schedule(config.schedule or "")
    usual = optimizer.defaults["lr"]

    def factor(step: int) -> float:
        rate = next((rate for rate, until in entries if until is None or step < until), 0.0)
        warmth = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
        return rate / usual * warmth

    return LambdaLR(optimizer, factor)


def enable_gradient_checkpointing(objective: Objective) -> None:
    """Switches gradient checkpointing on in the networks that gradients flow through."""
    base = objective.base
    base.unet.enable_gradient_checkpointing()
    base.vae.enable_gradient_checkpointing()
    if "text_encoder" in dict(objective.named_children()):
        encoder = base.text_encoder
        name = "activation_checkpointing_enable"  # what newer versions of transformers call it
        getattr(encoder, name if hasattr(encoder, name) else "gradient_checkpointing_enable")()
