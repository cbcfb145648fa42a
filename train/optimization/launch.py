"""What the recipe and the launcher ask for, together: the strategy of parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from inference.runtime import InputError
from train.config import TrainRecipe, strategy_faults
from train.optimization.strategies import Wrapping, is_on, zero_settings

FSDP = "ACCELERATE_USE_FSDP"
"""What `accelerate launch` sets if its config asks for FSDP."""

WRAPPED = "TRANSFORMER_BASED_WRAP"


def as_launched(recipe: TrainRecipe, variables: Mapping[str, str]) -> TrainRecipe:
    """Return a recipe with the strategy that the launcher asks for, where it has its default.

    Args:
        recipe: the run's.
        variables: of the environment, as `accelerate launch` sets them.

    Raises:
        InputError: they contradict each other, or something in either is not supported.
    """
    if (zero := zero_settings(recipe, variables)) is not None:
        parallel = replace(recipe.parallel, strategy=f"zero{zero.stage}", cpu_offload=zero.offload)
        return replace(recipe, parallel=parallel)
    if not is_on(variables.get(FSDP, "")):
        return recipe
    check_settings(recipe, variables)
    offload = "all" if is_on(variables.get("FSDP_OFFLOAD_PARAMS", "")) else "none"
    if recipe.parallel.cpu_offload not in ("none", offload):
        raise InputError(
            f"parallel.cpu_offload: {recipe.parallel.cpu_offload}, and accelerate's config says "
            "fsdp_offload_params: false: leave one of them out"
        )
    parallel = replace(recipe.parallel, strategy="fsdp", cpu_offload=offload)
    recipe = replace(recipe, parallel=parallel)
    if faults := list(strategy_faults(recipe)):
        lines = "\n".join(f"{key}: {message}" for key, message in faults)
        raise InputError(f"accelerate's config asks for FSDP:\n{lines}")
    return recipe


def check_settings(recipe: TrainRecipe, variables: Mapping[str, str]) -> None:
    """Check the settings of FSDP in accelerate's config.

    Raises:
        InputError: one is not supported, or contradicts the recipe; all are named.
    """
    if variables.get("FSDP_VERSION", "1") != "2":
        raise InputError(
            "accelerate's config asks for FSDP with fsdp_version: 1, which PyTorch has replaced: "
            "set fsdp_version: 2 (accelerate config, or configs/accelerate/fsdp2.yaml)"
        )
    faults = []
    policy = variables.get("FSDP_AUTO_WRAP_POLICY", WRAPPED)
    if policy == "SIZE_BASED_WRAP":
        faults.append(
            f"fsdp_auto_wrap_policy: {policy}: expected {WRAPPED}, which wraps the blocks of the "
            "model, or NO_WRAP"
        )
    state = variables.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if state != "SHARDED_STATE_DICT":
        faults.append(
            f"fsdp_state_dict_type: {state}: expected SHARDED_STATE_DICT; artifacts are whole "
            "anyway, and any number of processes resumes a sharded checkpoint"
        )
    checkpoints = is_on(variables.get("FSDP_ACTIVATION_CHECKPOINTING", ""))
    if checkpoints and not recipe.gradient_checkpointing:
        faults.append(
            "fsdp_activation_checkpointing: true, and the recipe says gradient_checkpointing: "
            "false: set it to true, or leave the former out"
        )
    if is_on(variables.get("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "")):
        faults.append("fsdp_activation_checkpointing_offload: true: is not supported")
    ignored = variables.get("FSDP_IGNORED_MODULES", "")
    if ignored:
        faults.append(f"fsdp_ignored_modules: {ignored}: is not supported")
    if faults:
        raise InputError("accelerate's config: " + "; ".join(faults))


def wrapping_of(recipe: TrainRecipe, variables: Mapping[str, str]) -> Wrapping:
    """Return what FSDP2 makes whole together, and when; the launcher's settings come first."""
    on_cpu = recipe.parallel.cpu_offload == "all"
    if not is_on(variables.get(FSDP, "")):
        return Wrapping(on_cpu=on_cpu)
    classes: list[str] | None = None
    if variables.get("FSDP_AUTO_WRAP_POLICY", WRAPPED) == "NO_WRAP":
        classes = []
    elif named := variables.get("FSDP_TRANSFORMER_CLS_TO_WRAP", ""):
        classes = [one.strip() for one in named.split(",")]
    reshards = is_on(variables.get("FSDP_RESHARD_AFTER_FORWARD", "true"))
    return Wrapping(reshards, on_cpu, classes)
