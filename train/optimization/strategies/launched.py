"""What `accelerate launch` asks for by variables, beyond DeepSpeed and FSDP."""

from __future__ import annotations

from collections.abc import Mapping

from inference.runtime import InputError
from train.config import TrainRecipe
from train.optimization.strategies.zero_config import is_on

HONOURED = {
    "ACCELERATE_CPU_AFFINITY": "accelerate binds each process to the cores near its GPU",
    "ACCELERATE_DEBUG_MODE": "accelerate checks the shapes of what processes exchange",
    "ACCELERATE_USE_CPU": "accelerate leaves the GPUs alone",
    "ACCELERATE_USE_DEEPSPEED": "zero_config.py",
    "ACCELERATE_DEEPSPEED_": "zero_config.py",
    "ACCELERATE_CONFIG_DS_FIELDS": "names of fields, for accelerate's own checks",
    "ACCELERATE_USE_FSDP": "as FSDP2, or refused",
    "FSDP_": "as FSDP2, or refused",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "checked against the recipe, with DeepSpeed",
    "ACCELERATE_GRADIENT_CLIPPING": "checked against the recipe, with DeepSpeed",
    "ACCELERATE_MIXED_PRECISION": "checked against the recipe",
    "ACCELERATE_DYNAMO_BACKEND": "refused but for `no`",
    "ACCELERATE_DYNAMO_": "has no meaning with the backend `no`",
}
"""Variables, and beginnings of their names, with what becomes of them."""

REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM: take FSDP or DeepSpeed (parallel.strategy)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "a parallelism_config: the recipe's key for the frames of clips is parallel.context"
    ),
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own launcher: start the run by torchrun there",
    "ACCELERATE_DOWNCAST_BF16": "TPUs, which training does not support",
}
"""Variables that ask for what training does not support, with the rest of the message."""

BESIDE = {
    "MEGATRON_LM_": "ACCELERATE_USE_MEGATRON_LM",
    "PARALLELISM_CONFIG_": "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_SAGEMAKER_": "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_FP8_": "ACCELERATE_MIXED_PRECISION",
    "XLA_": "ACCELERATE_DOWNCAST_BF16",
}
"""Beginnings of names that mean something beside a variable which is refused."""


def check_launched(recipe: TrainRecipe, variables: Mapping[str, str]) -> None:
    """Check what accelerate's config asks for besides the division of weights.

    Raises:
        InputError: it is not supported, or the precision differs from the recipe's.
    """
    for name, what in REFUSED.items():
        if is_on(variables.get(name, "")):
            raise InputError(f"accelerate's config asks for {what}")
    asked = variables.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "", recipe.mixed_precision):
        why = "which training does not support" if asked == "fp8" else "let both say the same"
        raise InputError(
            f"mixed_precision: {recipe.mixed_precision} in the recipe, but accelerate's config asks"
            f" for {asked}, {why}; or take mixed_precision out of the config"
        )
