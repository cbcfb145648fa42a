"""Build the optimizer, its parameter groups and its LR schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from inference.runtime import InputError
from train.config import OptimizerConfig
from train.objectives import Member
from train.optimization.lr_schedules import rate_course
from train.optimization.registry import Groups, create_optimizer, optimizer


def build_optimization(
    config: OptimizerConfig,
    members: Mapping[str, Member],
    wrap: Callable[[Optimizer], Optimizer] | None = None,
) -> tuple[Optimizer, LRScheduler]:
    """Return one optimizer, wrapped if `wrap` is given, and the LR schedule of every member."""
    groups = [
        group
        for name, member in members.items()
        for group in parameter_groups(member.recipe.optimizer, member.objective, name)
    ]
    optimizer = create_optimizer(config, groups)
    if wrap is not None:
        optimizer = wrap(optimizer)
    courses = {
        name: rate_course(
            member.recipe.lr_scheduler,
            member.recipe.optimizer.learning_rate,
            member.recipe.max_train_steps,
        )
        for name, member in members.items()
    }
    return optimizer, build_lr_scheduler(optimizer, courses)


@optimizer("adamw")
def adamw(
    groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float, eps: float
) -> Optimizer:
    """Return torch's AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101)."""
    copies = map(dict, groups)
    return torch.optim.AdamW(
        copies, fused=True, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps
    )


@optimizer("adamw8bit")
def adamw8bit(
    groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float, eps: float
) -> Optimizer:
    """Return bitsandbytes' AdamW with 8-bit state (Dettmers et al. 2021, arXiv 2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)


def parameter_groups(
    config: OptimizerConfig, objective: nn.Module, member: str = ""
) -> list[dict[str, object]]:
    """Return a group for each named child of the objective, with its own learning rate.

    Its name is the child's, with the member's as prefix in a combined objective.

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
    own: dict[str, object] = {}
    if config.is_ours or "weight_decay" in config.passed():
        own["weight_decay"] = config.weight_decay
    return [
        {
            "name": f"{member}.{name}" if member else name,
            "params": parameters,
            "lr": config.learning_rates.get(name, config.learning_rate),
            **own,
        }
        for name, parameters in parts.items()
    ]


def build_lr_scheduler(
    optimizer: Optimizer, courses: Mapping[str, Callable[[int], float]]
) -> LRScheduler:
    """Return a scheduler that steps every group's learning rate, once per optimizer step.

    Args:
        optimizer: its groups have the names of `parameter_groups`.
        courses: the schedule of each member; a single objective's has an empty name.
    """
    names = [group["name"].rpartition(".")[0] for group in optimizer.param_groups]
    return LambdaLR(optimizer, [courses[name] for name in names])
