"""Construction of what the trainer works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from inference.runtime import InputError
from train.config import LRSchedulerConfig, OptimizerConfig, parse_schedule
from train.objectives import Member, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


SMALL = 4096
"""bitsandbytes keeps the state of tensors below this size in 32 bits."""


def state_bytes(optimizer: str, numbers: int) -> int:
    """What an optimizer keeps of a tensor: two means in fp32, or in 8 bits with block scales."""
    if optimizer == "adamw8bit" and numbers >= SMALL:
        return 2 * numbers + 2 * 4 * -(-numbers // 256)
    return 8 * numbers


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
