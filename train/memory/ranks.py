"""What each process of a run holds, and what it sends in a step, by strategy.

Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), sections 5 and 7; Zhao et al. 2023 (FSDP, arXiv
2304.11277) and PyTorch's documentation of `torch.distributed.fsdp.fully_shard`; Jacobs et al. 2023
(DeepSpeed-Ulysses, arXiv 2309.14509), section 3.2; Thakur et al. 2005 for the ring all-reduce.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from torch import nn

from inference.parallel import Layout
from train.memory.figures import STEP, Divided, MemoryPlan

if TYPE_CHECKING:
    from train.config import TrainRecipe
    from train.objectives import Objective

PREFETCHED = 2
"""Blocks that are whole at once: the one at work, and the next one, which is gathered meanwhile."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in an optimizer step."""

    gradients: int = 0
    weights: int = 0
    attention: int = 0
    """Between the processes that compute a clip together."""

    @property
    def total(self) -> int:
        return self.gradients + self.weights + self.attention


def divided_bytes(objective: Objective, plan: MemoryPlan) -> Divided:
    """Return the bytes of what a strategy divides, given the plan of one process.

    The denoiser's layers outside its blocks stay whole from the first one to the last, as the root
    of `fully_shard` does; its blocks are whole in turns.
    """
    base = objective.base
    sizes = [module_bytes(block) for block in base.blocks()]
    largest = max(sizes, default=0)
    outside = module_bytes(base.denoiser) - sum(sizes)
    gradient = max((trained_in(block) for block in base.blocks()), default=0)
    learned = sum(one.nbytes for one in objective.parameters() if one.requires_grad)
    return Divided(
        denoiser=plan.parts[plan.denoiser].bytes,
        trained=plan.trained,
        learned=learned,
        gathered=outside + PREFETCHED * largest,
        gradient=gradient,
    )


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's weights."""
    return sum(one.nbytes for one in module.parameters())


def trained_in(module: nn.Module) -> int:
    """Return the bytes of a module's trained weights."""
    return sum(one.nbytes for one in module.parameters() if one.requires_grad)


def on_each(plan: MemoryPlan, recipe: TrainRecipe, layout: Layout, frames: int) -> MemoryPlan:
    """Return the memory of one of several processes.

    ZeRO's stages 1 to 3 divide the optimizer's state, the gradients too, the weights too, by the
    number N of processes. Where weights are divided, two blocks and the layers outside the blocks
    are whole at once, and the largest block's gradients before they are. Frames divide what a step
    and denoising take by the number of processes along context, as every token's activations are in
    one of them. A copy of each gradient is DDP's, in buckets; compression adds one in bf16. The
    buckets of ZeRO's engine are not counted.

    Args:
        plan: the memory of a run on one device.
        recipe: the run's.
        layout: of a process among all.
        frames: latent frames of an example; 1 for images.
    """
    count, strategy = layout.processes, recipe.parallel.strategy
    if count == 1:
        return plan
    plan = replace(plan, parts=dict(plan.parts), needs=dict(plan.needs), casts=0)
    if strategy == "ddp":
        plan.casts = plan.gradients
        if recipe.parallel.gradient_compression == "bf16":
            plan.casts += plan.gradients // 2
    else:
        optimizer = ceil(plan.optimizer / count)
        plan.spared = max(0, plan.spared - plan.optimizer + optimizer)
        plan.optimizer = optimizer
        plan.host_state = ceil(plan.host_state / count)
    if strategy in ("zero2", "zero3", "fsdp"):
        plan.gradients = ceil(plan.gradients / count)
    if strategy in ("zero3", "fsdp"):
        part = plan.parts[plan.denoiser]
        plan.parts[plan.denoiser] = replace(part, bytes=ceil(part.bytes / count))
        plan.trained, plan.ema = ceil(plan.trained / count), ceil(plan.ema / count)
        plan.drawn = ceil(plan.drawn / count)
        plan.gathered, plan.casts = plan.whole.gathered, plan.whole.gradient
    offload(plan, recipe.parallel.cpu_offload)
    for phase in (STEP, "denoising"):
        plan.needs[phase] = along_frames(plan.needs[phase], frames, layout.context)
    plan.other_activations = along_frames(plan.other_activations, frames, layout.context)
    return plan


def along_frames(count: int, frames: int, context: int) -> int:
    """Return the bytes of the process that has the most of an example's latent frames."""
    return ceil(count * ceil(frames / context) / frames)


def offload(plan: MemoryPlan, what: str) -> None:
    """Move what `parallel.cpu_offload` names to the system's memory."""
    if what == "none":
        return
    plan.host_state += plan.optimizer
    plan.spared = max(0, plan.spared - plan.optimizer)
    plan.optimizer = 0
    if what == "all":
        part = plan.parts[plan.denoiser]
        plan.host_state += part.bytes + plan.trained + plan.gradients
        plan.parts[plan.denoiser] = replace(part, bytes=0)
        plan.trained = plan.gradients = 0


def traffic_of(recipe: TrainRecipe, parts: Divided, layout: Layout, attention: int = 0) -> Traffic:
    """Return what each process sends in an optimizer step.

    With N processes and collectives in rings, of gradients G, trained weights T and the weights W
    of what is divided: DDP sends 2 (N - 1)/N G (an all-reduce, once a step). ZeRO 1 and 2 reduce
    and scatter G, ZeRO 2 in each micro-batch, and gather T after the step. ZeRO 3 and FSDP2 gather
    W in each forward and backward pass, and reduce and scatter G in each micro-batch. DeepSpeed
    Ulysses sends (C - 1)/C of its tokens' queries, keys, values and outputs, in the forward pass,
    in its repetition by gradient checkpointing, and in the backward pass.

    Args:
        recipe: of the stage.
        parts: what is divided.
        layout: of a process among all.
        attention: bytes of the queries of all attention layers in the forward pass of a
            micro-batch, on one process.
    """
    count, context, strategy = layout.processes, layout.context, recipe.parallel.strategy
    if count == 1:
        return Traffic()
    micro_batches, others = recipe.gradient_accumulation_steps, (count - 1) / count
    gradients, weights = float(parts.learned), 0.0
    if strategy == "ddp":
        gradients *= 2
        if recipe.parallel.gradient_compression == "bf16":
            gradients /= 2
    elif strategy in ("zero1", "zero2"):
        weights = parts.learned
        gradients *= micro_batches if strategy == "zero2" else 1
    else:
        weights = 2 * micro_batches * (parts.denoiser + parts.trained)
        gradients *= micro_batches
    passes = 3 if recipe.gradient_checkpointing else 2
    between = 4 * passes * micro_batches * attention / context * (context - 1) / context
    return Traffic(round(others * gradients), round(others * weights), round(between))
