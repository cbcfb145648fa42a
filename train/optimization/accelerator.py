"""The accelerator of a run, as the recipe configures it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from inference.runtime import InputError
from train.config import TrainRecipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(recipe: TrainRecipe) -> Accelerator:
    """Return the accelerator of this process.

    Raises:
        InputError: several processes are configured and only one was started, or mixed precision
            is not available on this device.
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
