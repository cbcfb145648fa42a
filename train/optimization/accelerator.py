"""The accelerator of a run, as the recipe configures it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from inference.parallel import Layout, group_address
from inference.recipe import RecipeWarning
from inference.runtime import LONGEST_WAIT, InputError, keep_freed_memory, warn_of_emulation
from train.common import uses_gpu
from train.config import TrainRecipe
from train.optimization.launch import wrapping_of
from train.optimization.strategies import build_plugin, is_on, without_variables, zero_settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, GradientAccumulationPlugin

    from train.optimization.strategies import Strategy


REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What divides weights between processes, by the variable that `accelerate launch` sets."""


UNSUPPORTED = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "a parallelism_config: the recipe's key for the frames of clips is parallel.context"
    ),
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own launcher: start the run by torchrun there",
    "ACCELERATE_DOWNCAST_BF16": "TPUs, which training does not support",
}
"""Variables that ask for what training does not support, with the rest of the message."""


def check_launch(variables: Mapping[str, str]) -> None:
    """Check what accelerate's config asks for, as `accelerate launch` hands it on.

    Raises:
        InputError: it asks for what is not supported, or for the objective to be compiled.
    """
    asked = [name for key, name in REFUSED.items() if is_on(variables.get(key, ""))]
    backend = variables.get("ACCELERATE_DYNAMO_BACKEND", "")
    if is_on(backend):
        asked.append(
            f"torch.compile (dynamo_backend: {backend}; the recipe's key is speed.compile)"
        )
    if asked:
        raise InputError(
            f"accelerate's config asks for {' and '.join(asked)}, which training does not support: "
            "each device has whole weights, as they are. Take configs/accelerate/one_gpu.yaml or "
            "two_gpus.yaml (accelerate launch --config_file …), or answer no in `accelerate config`"
        )


def check_launched(recipe: TrainRecipe, variables: Mapping[str, str]) -> None:
    """Check what accelerate's config asks for besides the division of weights.

    Raises:
        InputError: it is not supported, or the precision differs from the recipe's.
    """
    for name, what in UNSUPPORTED.items():
        if is_on(variables.get(name, "")):
            raise InputError(f"accelerate's config asks for {what}")
    asked = variables.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "", recipe.mixed_precision):
        why = "which training does not support" if asked == "fp8" else "let both say the same"
        raise InputError(
            f"mixed_precision: {recipe.mixed_precision} in the recipe, but accelerate's config asks"
            f" for {asked}, {why}; or take mixed_precision out of the config"
        )


def build_accelerator(recipe: TrainRecipe) -> Accelerator:
    """Return the accelerator of this process.

    Raises:
        InputError: several processes are configured and only one was started, or several started
            and the recipe is for one; mixed precision is not available on this device, or its
            config asks for what is not supported.
    """
    check_launch(os.environ)
    check_launched(recipe, os.environ)
    settings = zero_settings(recipe, os.environ)
    if "FSDP_CPU_RAM_EFFICIENT_LOADING" in os.environ:
        # Each process reads the weights of which it keeps a share; transformers would leave those
        # of all processes but the first one empty.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    plugin = GradientAccumulationPlugin(
        num_steps=recipe.gradient_accumulation_steps, sync_with_dataloader=False
    )
    precision = "no" if recipe.mixed_precision == "fp32" else recipe.mixed_precision
    if precision == "fp16" and not uses_gpu():
        forbidden = ", and ACCELERATE_USE_CPU forbids it" if torch.cuda.is_available() else ""
        raise InputError(
            f"mixed_precision: fp16 needs a GPU{forbidden}; bf16 and fp32 work on CPUs"
        )
    if settings is None:
        group = InitProcessGroupKwargs(init_method=group_address(), timeout=LONGEST_WAIT)
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_plugin=plugin,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[group],
        )
    else:
        accelerator = zero_accelerator(build_plugin(recipe, settings), plugin)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise InputError(
            f"{asked} processes were asked for, accelerate started {accelerator.num_processes}. On "
            "CPUs: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m train …"
        )
    if recipe.memory.fused_backward and accelerator.num_processes > 1:
        raise InputError(
            f"memory.fused_backward: is for one process, got {accelerator.num_processes}: weights "
            "would change before the processes have added up their gradients. Train on one "
            "device, or leave it out"
        )
    check_compression(recipe, accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.is_main_process:
        formats = {
            "mixed_precision": recipe.mixed_precision,
            "base_model.vae_precision": recipe.base_model.vae_precision,
        }
        warn_of_emulation(accelerator.device, formats, RecipeWarning)
    return accelerator


def check_compression(recipe: TrainRecipe, accelerator: Accelerator) -> None:
    """Check that gradients can be compressed between the processes; warn if there is only one.

    Raises:
        InputError: this is not a GPU: PyTorch compresses what NCCL sends.
    """
    if recipe.parallel.gradient_compression == "none":
        return
    if accelerator.num_processes == 1:
        warnings.warn(
            "parallel.gradient_compression: has no effect on one process, which sends no gradients",
            RecipeWarning,
            stacklevel=2,
        )
    elif accelerator.device.type != "cuda":
        raise InputError(
            f"parallel.gradient_compression: bf16 is for GPUs, got {accelerator.device.type}: "
            "PyTorch compresses what NCCL sends. Leave it out"
        )


def zero_accelerator(
    deepspeed: DeepSpeedPlugin, accumulation: GradientAccumulationPlugin
) -> Accelerator:
    """Return the accelerator of a run that DeepSpeed divides.

    On CPUs accelerate leaves DeepSpeed out if it is asked for CPUs, and otherwise does not know how
    they talk. Its mixed precision casts the model: the strategy computes under autocast instead.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    backend = "nccl" if uses_gpu() else "gloo"
    group = InitProcessGroupKwargs(backend, group_address(), LONGEST_WAIT)
    with without_variables("ACCELERATE_USE_CPU"):
        accelerator = Accelerator(
            mixed_precision="no",
            gradient_accumulation_plugin=accumulation,
            step_scheduler_with_optimizer=False,
            deepspeed_plugin=deepspeed,
            kwargs_handlers=[group],
        )
    # Otherwise Transformers would divide the weights of text encoders while it reads them.
    unset_hf_deepspeed_config()
    return accelerator


def layout_of(recipe: TrainRecipe, accelerator: Accelerator) -> Layout:
    """Return this process's place among the run's.

    Raises:
        InputError: `parallel.context` does not divide the processes.
    """
    return Layout(accelerator.process_index, accelerator.num_processes, recipe.parallel.context)


def build_strategy(recipe: TrainRecipe, accelerator: Accelerator) -> Strategy:
    """Return how the processes of the run hold the weights; one process has all of them.

    Unless it was launched with FSDP all the same: the accelerator would wrap it by itself.
    """
    from train.optimization.strategies import DataParallel, FullySharded, Zero

    if accelerator.state.deepspeed_plugin is not None:
        return Zero(recipe, accelerator)
    divides = accelerator.num_processes > 1 or accelerator.distributed_type == "FSDP"
    if recipe.parallel.strategy == "fsdp" and divides:
        return FullySharded(recipe, accelerator, wrapping_of(recipe, os.environ))
    return DataParallel(recipe, accelerator)
