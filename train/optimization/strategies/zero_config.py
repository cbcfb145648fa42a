"""DeepSpeed's configuration, of the recipe and of accelerate's config file together."""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inference.runtime import InputError, require
from train.common import uses_gpu
from train.config import TrainRecipe, stage_recipes, zero_faults

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin

Offload = Literal["none", "optimizer", "all"]

STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
OPTIMIZER_DEVICE = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
WEIGHTS_DEVICE = "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"
CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
LAYERS = "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES"

ZERO = {
    "allgather_bucket_size", "allgather_partitions", "allgather_sequential", "contiguous_gradients",
    "ignore_unused_parameters", "log_trace_cache_warnings", "overlap_comm", "parameter_alignment",
    "reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
    "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "sub_group_size",
    "use_multi_rank_bucket_allreduce",
}  # fmt: skip
"""Keys of `zero_optimization` that concern speed and memory alone: they are passed on."""

WITHOUT_EFFECT = {
    "elastic_checkpoint", "load_from_fp32_weights", "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save",
}  # fmt: skip
"""Keys of `zero_optimization` about DeepSpeed's own checkpoints, which are not written."""

PASSED_ON = {
    "comms_logger", "dump_state", "gradient_predivide_factor", "memory_breakdown",
    "prescale_gradients", "wall_clock_breakdown",
}  # fmt: skip
"""Other keys that are passed on."""

OURS = {"steps_per_print", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}
"""Keys that are set here whatever a file says: without effect on results."""

REMEDIES = {
    "scheduler": "the recipe's lr_scheduler sets the learning rate",
    "communication_data_type": "gradients are sent as they are, in fp32",
    "torch_autocast": "the recipe's key is mixed_precision",
    "data_types": "trained weights and gradients are fp32",
    "activation_checkpointing": "the recipe's key is gradient_checkpointing",
    "tensorboard": "the recipe has its own log in TensorBoard",
}
"""What to say of keys that are refused."""


@dataclass(frozen=True)
class ZeroSettings:
    """How DeepSpeed divides the run."""

    stage: int
    offload: Offload = "none"
    zero: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `zero_optimization`, of a configuration file."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of such a file."""


def zero_settings(recipe: TrainRecipe, variables: Mapping[str, str]) -> ZeroSettings | None:
    """Return what recipe and accelerate's config say of DeepSpeed; None if neither asks for it.

    A recipe with `strategy: ddp`, the default, leaves the choice to accelerate's config.

    Args:
        recipe: the run's.
        variables: of the environment, as `accelerate launch` sets them.

    Raises:
        InputError: they differ, or the recipe has what DeepSpeed cannot do.
    """
    parallel = recipe.parallel
    is_launched = is_on(variables.get("ACCELERATE_USE_DEEPSPEED", ""))
    if not is_launched and not parallel.strategy.startswith("zero"):
        return None
    if is_on(variables.get("ACCELERATE_USE_FSDP", "")):
        raise differing(f"parallel.strategy: {parallel.strategy}", "FSDP")
    settings = ZeroSettings(0)
    if is_launched:
        settings = launched_settings(recipe, variables)
    if parallel.strategy.startswith("zero"):
        settings = both(parallel.strategy, parallel.cpu_offload, settings, is_launched)
    elif parallel.strategy != "ddp":
        raise differing(f"parallel.strategy: {parallel.strategy}", "DeepSpeed")
    wanted = replace(parallel, strategy=f"zero{settings.stage}", cpu_offload=settings.offload)
    own = [(f"parallel.{key}", message) for key, message in wanted.faults()]
    faults = [*own, *zero_faults(replace(recipe, parallel=wanted))]
    if faults:
        raise InputError("; ".join(f"{key}: {message}" for key, message in faults))
    return settings


def is_on(value: str) -> bool:
    """Return whether a variable switches something on."""
    return value.lower() not in ("", "0", "false", "no", "off")


def both(
    strategy: str, offload: Offload, launched: ZeroSettings, is_launched: bool
) -> ZeroSettings:
    """Return the settings of a recipe that asks for ZeRO, and of accelerate's config beside it."""
    stage = int(strategy.removeprefix("zero"))
    if is_launched and launched.stage != stage:
        raise differing(f"parallel.strategy: {strategy}", f"ZeRO stage {launched.stage}")
    if "none" not in (offload, launched.offload) and offload != launched.offload:
        raise differing(f"parallel.cpu_offload: {offload}", f"the offload of {launched.offload}")
    return replace(
        launched, stage=stage, offload=offload if offload != "none" else launched.offload
    )


def differing(ours: str, theirs: str) -> InputError:
    """Return the error of a recipe and a config of accelerate that ask for different things."""
    return InputError(
        f"{ours} in the recipe, but accelerate's config asks for {theirs}: let both say the same, "
        "or take the key out of one of them"
    )


def launched_settings(recipe: TrainRecipe, variables: Mapping[str, str]) -> ZeroSettings:
    """Return what accelerate's config asks for, once `ACCELERATE_USE_DEEPSPEED` is set.

    Raises:
        InputError: it differs from the recipe, or asks for what training does not support.
    """
    if variables.get(LAYERS):
        raise InputError(
            f"accelerate's config asks for deepspeed_moe_layer_cls_names: {variables[LAYERS]}, but "
            "no model here has a mixture of experts: leave the key out"
        )
    agree("gradient_accumulation_steps", variables.get(ACCUMULATION), recipe, silent="1")
    agree("gradient_clipping", variables.get(CLIPPING), recipe)
    name = variables.get(CONFIG_FILE, "")
    if name and name != "none":
        settings = settings_of(file_content(name), recipe)
        if STAGE in variables and int(variables[STAGE]) != settings.stage:
            raise InputError(
                f"accelerate's config says zero_stage: {variables[STAGE]}, but its "
                f"deepspeed_config_file {settings.stage}: let both say the same"
            )
        return settings
    devices = [variables.get(key, "none") for key in (OPTIMIZER_DEVICE, WEIGHTS_DEVICE)]
    stage = int(variables.get(STAGE, "2"))
    return ZeroSettings(known_stage(stage), offload_of(devices[0], devices[1], stage))


def known_stage(stage: object) -> int:
    """Return a stage of ZeRO that divides something.

    Raises:
        InputError: it is another one.
    """
    if stage not in (1, 2, 3):
        raise InputError(
            f"accelerate's config asks for DeepSpeed with ZeRO stage {stage}: the stages are 1, 2 "
            "and 3; without DeepSpeed (distributed_type: MULTI_GPU) each process has all weights"
        )
    return int(str(stage))


def offload_of(optimizer: str, weights: str, stage: int) -> Offload:
    """Return the recipe's word for DeepSpeed's two devices.

    Raises:
        InputError: they are not the CPU, or weights without their optimizer.
    """
    for key, device in (("offload_optimizer", optimizer), ("offload_param", weights)):
        if device not in ("none", "cpu"):
            raise InputError(
                f"accelerate's config asks for {key} to {device}; it can be none or cpu"
            )
    if weights == "cpu" and stage < 3:
        raise InputError(
            f"accelerate's config asks for offload_param to the CPU with ZeRO stage {stage}, which "
            "keeps whole weights on the device: it is for stage 3"
        )
    if weights == "cpu" and optimizer == "none":
        raise InputError(
            "accelerate's config asks for offload_param without offload_optimizer, though the "
            "optimizer's state is larger: set both (parallel.cpu_offload: all)"
        )
    return "all" if weights == "cpu" else "optimizer" if optimizer == "cpu" else "none"


def file_content(name: str) -> dict[str, Any]:
    """Return the content of a configuration file, or of its base64 form.

    Raises:
        InputError: it cannot be read.
    """
    try:
        try:
            text = Path(name).read_text()
        except OSError:
            text = base64.urlsafe_b64decode(name).decode()
        content = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"deepspeed_config_file: {name} is neither a JSON file nor its base64 form ({error})"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"deepspeed_config_file: {name} holds no JSON object")
    return content


def settings_of(content: Mapping[str, Any], recipe: TrainRecipe) -> ZeroSettings:
    """Return the settings of a configuration file.

    Raises:
        InputError: a key differs from the recipe, or is not supported.
    """
    others = {}
    for key, value in content.items():
        if key in PASSED_ON:
            others[key] = value
        elif key == "zero_optimization" or key in OURS:
            continue
        elif key in CHECKS:
            CHECKS[key](key, value, recipe)
        elif not is_off(value):
            why = REMEDIES.get(key, "leave it out")
            raise InputError(f"deepspeed_config_file: {key} is not supported: {why}")
    zero = dict(content.get("zero_optimization", {}))
    stage = known_stage(zero.pop("stage", None))
    devices = {
        key: str((zero.pop(key, None) or {}).get("device", "none"))
        for key in ("offload_optimizer", "offload_param")
    }
    offload = offload_of(devices["offload_optimizer"], devices["offload_param"], stage)
    for key, value in list(zero.items()):
        if key in WITHOUT_EFFECT or value == "auto":
            del zero[key]
        elif key not in ZERO:
            if not is_off(value):
                raise InputError(
                    f"deepspeed_config_file: zero_optimization.{key} is not supported: it changes "
                    "results, or how weights are held; leave it out"
                )
            del zero[key]
    return ZeroSettings(stage, offload, zero, others)


def is_off(value: object) -> bool:
    """Return whether a value of a configuration file asks for nothing."""
    if isinstance(value, Mapping) and "enabled" in value:
        return not value["enabled"]
    return value in (None, False, "none", "auto") or value == {} or value == []


def agree(
    key: str, value: object, recipe: TrainRecipe, *, silent: object = None, where: str = ""
) -> None:
    """Check a number that accelerate's config states beside the recipe.

    Args:
        key: DeepSpeed's.
        value: as stated; None and `auto` state nothing.
        recipe: the run's.
        silent: a value that accelerate sets by itself, and which states nothing.
        where: names the file, for the message.

    Raises:
        InputError: they differ.
    """
    if value in (None, "auto", "none", silent):
        return
    name, own = OWNED[key](recipe)
    if float(str(value)) != own:
        shown = "null" if own == 0 and name == "max_grad_norm" else f"{own:g}"
        raise InputError(
            f"{name}: {shown} in the recipe, but {where} says {key}: "
            f"{value}: let both say the same, or take {key} out of the config"
        )


def _batch(recipe: TrainRecipe) -> tuple[str, float]:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    own = recipe.train_batch_size * recipe.gradient_accumulation_steps * processes
    return "train_batch_size times gradient_accumulation_steps and processes", own


OWNED = {
    "gradient_accumulation_steps": lambda r: (
        "gradient_accumulation_steps", float(r.gradient_accumulation_steps)
    ),
    "gradient_clipping": lambda r: ("max_grad_norm", float(r.max_grad_norm or 0.0)),
    "train_micro_batch_size_per_gpu": lambda r: ("train_batch_size", float(r.train_batch_size)),
    "train_batch_size": _batch,
}  # fmt: skip
"""The recipe's name and number for DeepSpeed's keys."""

FILE = "deepspeed_config_file"


def _check_number(key: str, value: object, recipe: TrainRecipe) -> None:
    agree(key, value, recipe, where=FILE)


def _check_format(key: str, value: Any, recipe: TrainRecipe) -> None:
    asked = value.get("enabled", False) if isinstance(value, Mapping) else value
    if asked != "auto" and bool(asked) and recipe.mixed_precision != key:
        raise InputError(
            f"mixed_precision: {recipe.mixed_precision} in the recipe, but {FILE} enables {key}: "
            f"let both say the same, or take {key} out of the file"
        )


def _check_optimizer(key: str, value: Any, recipe: TrainRecipe) -> None:
    own = recipe.optimizer
    numbers = {
        "lr": own.learning_rate,
        "weight_decay": own.weight_decay,
        "eps": own.epsilon,
        "betas": list(own.betas),
    }
    stated = dict(value.get("params", {}))
    named = {name: one for name, one in stated.items() if one != "auto"}
    if value.get("type", "AdamW") != "AdamW" or any(
        numbers.get(name) != one for name, one in named.items()
    ):
        raise InputError(
            f"optimizer.type: {own.type} with its numbers in the recipe, but {FILE} states its own "
            f"{key}: {json.dumps(value)}: the recipe sets the optimizer; take it out of the file"
        )


CHECKS = {
    **dict.fromkeys(OWNED, _check_number),
    "fp16": _check_format,
    "bf16": _check_format,
    "optimizer": _check_optimizer,
}
"""Keys of a configuration file that may say what the recipe says."""


def deepspeed_config(recipe: TrainRecipe, settings: ZeroSettings) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a run.

    Without `fp16` and `bf16`: these cast the model, while trained weights are fp32 here and compute
    under autocast.
    """
    devices = {"offload_optimizer": settings.offload != "none"}
    devices["offload_param"] = settings.offload == "all"
    place = {"device": "cpu", "pin_memory": uses_gpu()}
    zero = {**settings.zero, "stage": settings.stage}
    if settings.stage == 3:
        zero["memory_efficient_linear"] = False  # it would replace torch's linear, everywhere
    zero |= {key: dict(place) for key, is_used in devices.items() if is_used}
    return {
        **settings.others,
        "train_micro_batch_size_per_gpu": recipe.train_batch_size,
        "gradient_accumulation_steps": most_accumulation(recipe),
        "gradient_clipping": recipe.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def imported() -> Any:
    """Return DeepSpeed.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    return require("deepspeed", "parallel: zero1 to zero3", "DeepSpeed", "deepspeed")


def most_accumulation(recipe: TrainRecipe) -> int:
    """Return the largest number of any stage: DeepSpeed prepares for sums if it is above 1."""
    return max(one.gradient_accumulation_steps for one in stage_recipes(recipe))


def build_plugin(recipe: TrainRecipe, settings: ZeroSettings) -> DeepSpeedPlugin:
    """Return accelerate's plugin of a run.

    Raises:
        InputError: DeepSpeed is not installed, the run was not started by a launcher, or GPUs are
            here that it may not use.
    """
    if not uses_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed prints what it has found
    deepspeed = imported()
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"parallel: zero{settings.stage} divides a run between processes: start it by torchrun "
            "--nproc_per_node 2 -m train …, or by accelerate launch"
        )
    import torch
    from accelerate.utils import DeepSpeedPlugin

    if torch.cuda.is_available() and not uses_gpu():
        raise InputError(
            "ACCELERATE_USE_CPU: accelerate runs DeepSpeed on the GPUs that it finds; hide them "
            "with CUDA_VISIBLE_DEVICES= to train on CPUs"
        )
    deepspeed.utils.logger.setLevel("WARNING")
    # On CPUs DeepSpeed would compile this at the start; a process that is killed meanwhile leaves a
    # lock, for which all later runs wait.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", r".torch\.distributed\.\w+. is deprecated", FutureWarning)
    with without_variables("ACCELERATE_CONFIG_DS_FIELDS"):
        return DeepSpeedPlugin(
            hf_ds_config=deepspeed_config(recipe, settings),
            gradient_accumulation_steps=most_accumulation(recipe),
            zero3_init_flag=False,
        )


@contextmanager
def without_variables(*names: str) -> Iterator[None]:
    """Hide variables of the environment inside the context."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden
