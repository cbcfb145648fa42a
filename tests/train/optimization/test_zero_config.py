"""Recipe and accelerate's config agree on DeepSpeed, or are refused in one line each."""

import base64
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import launch

from inference.runtime import InputError
from train.config.recipe import TrainRecipe
from train.optimization.accelerator import REFUSED, UNSUPPORTED, check_launched
from train.optimization.strategies.zero_config import (
    build_plugin,
    deepspeed_config,
    zero_settings,
)

MakeRecipe = Callable[..., TrainRecipe]

ON = {"ACCELERATE_USE_DEEPSPEED": "true"}
STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
OPTIMIZER = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
WEIGHTS = "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"
FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def zero(recipe: TrainRecipe, variables: dict[str, str]) -> dict[str, Any] | None:
    """DeepSpeed's own part of the configuration."""
    settings = zero_settings(recipe, variables)
    return None if settings is None else deepspeed_config(recipe, settings)["zero_optimization"]


def test_what_the_recipe_or_the_config_asks_for(make_recipe: MakeRecipe) -> None:
    place = {"device": "cpu", "pin_memory": False}
    plain, both = make_recipe(), {OPTIMIZER: "cpu", WEIGHTS: "cpu"}
    assert zero(plain, {"ACCELERATE_USE_DEEPSPEED": "false", STAGE: "2"}) is None
    assert zero(make_recipe("parallel=zero1"), {}) == {"stage": 1}
    assert zero(plain, ON) == {"stage": 2}  # accelerate's own default
    assert zero(make_recipe("parallel=zero3"), ON | {STAGE: "3"}) == {
        "stage": 3,
        "memory_efficient_linear": False,
    }
    offloaded = {"stage": 2, "offload_optimizer": place}
    assert zero(make_recipe("parallel={strategy: zero2, cpu_offload: optimizer}"), {}) == offloaded
    assert zero(make_recipe("parallel=zero2"), ON | {OPTIMIZER: "cpu"}) == offloaded
    everything = {
        "stage": 3,
        "memory_efficient_linear": False,
        "offload_optimizer": place,
        "offload_param": place,
    }
    assert zero(make_recipe("parallel={strategy: zero3, cpu_offload: all}"), {}) == everything
    assert zero(plain, ON | {STAGE: "3"} | both) == everything


def test_the_recipe_owns_the_numbers(make_recipe: MakeRecipe) -> None:
    """No key casts the model, and DeepSpeed takes torch's optimizer as it is, on CPUs too."""
    recipe = make_recipe("parallel=zero2", "mixed_precision=bf16", "gradient_accumulation_steps=3")
    settings = zero_settings(recipe, {})
    assert settings is not None
    config = deepspeed_config(recipe, settings)
    del config["zero_optimization"]
    assert config == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    settings = zero_settings(make_recipe("parallel=zero2", "max_grad_norm=null"), {})
    assert settings is not None
    assert deepspeed_config(make_recipe("max_grad_norm=null"), settings)["gradient_clipping"] == 0


CONFLICTS = [
    ("parallel=zero2", ON | {STAGE: "3"}, "parallel.strategy: zero2 .* ZeRO stage 3"),
    ("parallel=fsdp", ON, "parallel.strategy: fsdp .* DeepSpeed"),
    ("parallel=zero2", {"ACCELERATE_USE_FSDP": "1"}, "parallel.strategy: zero2 .* FSDP"),
    (
        "parallel={strategy: zero3, cpu_offload: optimizer}",
        ON | {STAGE: "3", OPTIMIZER: "cpu", WEIGHTS: "cpu"},
        "parallel.cpu_offload: optimizer .* offload of all",
    ),
    ("", ON | {STAGE: "0"}, "ZeRO stage 0: the stages are 1, 2 and 3"),
    ("", ON | {OPTIMIZER: "nvme"}, "offload_optimizer to nvme; it can be none or cpu"),
    ("", ON | {OPTIMIZER: "cpu", WEIGHTS: "cpu"}, "offload_param to the CPU with ZeRO stage 2"),
    ("", ON | {STAGE: "3", WEIGHTS: "cpu"}, "offload_param without offload_optimizer"),
    (
        "gradient_accumulation_steps=2",
        ON | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        "gradient_accumulation_steps: 2 in the recipe, but .* says .*: 4",
    ),
    (
        "max_grad_norm=null",
        ON | {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
        "max_grad_norm: null in the recipe, but .* gradient_clipping: 0.5",
    ),
    ("", ON | {"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Block"}, "no model here has a mixture"),
    ("", ON | {FILE: "/nowhere.json"}, "nowhere.json is neither a JSON file nor its base64"),
    ("max_grad_value=1", ON, "max_grad_value: cannot go with parallel: zero2"),
    ("memory.fused_backward=true", ON, "memory.fused_backward: cannot go with parallel: zero2"),
    ("optimizer.type=adamw8bit", ON, "optimizer.type: adamw8bit cannot go with parallel: zero2"),
    ("base_model.quantization=nf4", ON | {STAGE: "3"}, "base_model.quantization: cannot go with"),
]


@pytest.mark.parametrize(("override", "variables", "message"), CONFLICTS)
def test_conflicts_are_refused_in_one_line(
    override: str, variables: dict[str, str], message: str, make_recipe: MakeRecipe
) -> None:
    extra = ["max_grad_norm=null"] if "fused" in override else []
    recipe = make_recipe(*filter(None, [override]), *extra)
    with pytest.raises(InputError, match=message) as caught:
        zero_settings(recipe, variables)
    assert "\n" not in str(caught.value)


STATED = [
    ({"gradient_clipping": 0.3}, "max_grad_norm: 1 .*gradient_clipping: 0.3"),
    ({"train_micro_batch_size_per_gpu": 8}, "train_batch_size: 2 .*per_gpu: 8"),
    ({"train_batch_size": 3}, "train_batch_size times .*: 2 .*train_batch_size: 3"),
    ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps: 1 .*steps: 8"),
    ({"fp16": {"enabled": True}}, "mixed_precision: fp32 .*enables fp16"),
    ({"bf16": {"enabled": True}}, "mixed_precision: fp32 .*enables bf16"),
    ({"optimizer": {"type": "Adam"}}, "optimizer.type: adamw .*states its own optimizer"),
    (
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}},
        "optimizer.type: adamw .*states its own",
    ),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler is not supported: the recipe's lr_scheduler"),
    ({"torch_autocast": {"enabled": True}}, "torch_autocast is not supported"),
    ({"communication_data_type": "bf16"}, "communication_data_type is not supported"),
    ({"compression_training": {"x": 1}}, "compression_training is not supported"),
    ({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}}, "zero_quantized_grad"),
    ({"zero_optimization": {}}, "ZeRO stage None"),
]


@pytest.mark.parametrize(("stated", "message"), STATED)
def test_a_file_of_deepspeed_that_differs_is_refused(
    stated: dict[str, Any], message: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | stated))
    with pytest.raises(InputError, match=message) as caught:
        zero_settings(make_recipe(), ON | {FILE: str(path)})
    assert "\n" not in str(caught.value)


def test_a_file_of_deepspeed_that_agrees_is_honoured(make_recipe: MakeRecipe) -> None:
    """Also with `auto`, as its documentation recommends; as base64 too."""
    content = {
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
            "offload_optimizer": {"device": "cpu"},
            "zero_quantized_weights": False,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": 0.01}},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": 2,
        "fp16": {"enabled": False},
        "bf16": {"enabled": "auto"},
        "wall_clock_breakdown": True,
        "steps_per_print": 10,
    }
    encoded = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    recipe = make_recipe()
    settings = zero_settings(recipe, ON | {FILE: encoded})
    assert settings is not None
    config = deepspeed_config(recipe, settings)
    assert config["zero_optimization"] == {
        "stage": 3,
        "memory_efficient_linear": False,
        "stage3_param_persistence_threshold": 0,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
    }
    assert config["wall_clock_breakdown"] is True
    assert not config.keys() & {"optimizer", "fp16", "bf16", "steps_per_print"}
    with pytest.raises(InputError, match="zero_stage: 2, but its deepspeed_config_file 3"):
        zero_settings(recipe, ON | {FILE: encoded, STAGE: "2"})


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

BESIDE = {
    "MEGATRON_LM_": "ACCELERATE_USE_MEGATRON_LM",
    "PARALLELISM_CONFIG_": "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_SAGEMAKER_": "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_FP8_": "ACCELERATE_MIXED_PRECISION",
    "XLA_": "ACCELERATE_DOWNCAST_BF16",
}
"""Beginnings of names that mean something beside a variable which is refused."""


def launch_variables() -> set[str]:
    """The variables that the source of `accelerate launch` sets."""
    text = Path(launch.__file__).read_text()
    found = set(re.findall(r'"((?:ACCELERATE|FSDP|XLA)_[A-Z0-9_]+)"\] =', text))
    for function in re.split(r"\ndef ", text):
        for prefix in re.findall(r'prefix = "([A-Z_]+)"', function):
            found |= {prefix + name for name in re.findall(r'prefix \+ "([A-Z0-9_]+)"', function)}
    return found


def test_each_variable_of_accelerate_launch_is_honoured_or_refused() -> None:
    found = launch_variables()
    assert len(found) > 60
    beginnings = (*HONOURED, *REFUSED, *UNSUPPORTED, *BESIDE)
    assert [name for name in sorted(found) if not name.startswith(beginnings)] == []
    # Each that is refused is set by a file of the launcher, or read by accelerate.
    root = Path(launch.__file__).parents[1]
    sources = "".join((root / name).read_text() for name in ("utils/launch.py", "state.py"))
    assert [name for name in UNSUPPORTED if name not in sources] == []


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_refused_is_refused_in_one_line(name: str, make_recipe: MakeRecipe) -> None:
    check_launched(make_recipe(), {name: "false", "ACCELERATE_MIXED_PRECISION": "no"})
    with pytest.raises(InputError, match=r"^accelerate's config asks for .*$"):
        check_launched(make_recipe(), {name: "true"})


@pytest.mark.parametrize("asked", ["fp8", "fp16"])
def test_a_precision_other_than_the_recipes(asked: str, make_recipe: MakeRecipe) -> None:
    check_launched(make_recipe("mixed_precision=bf16"), {"ACCELERATE_MIXED_PRECISION": "bf16"})
    with pytest.raises(InputError, match=f"^mixed_precision: bf16 in the recipe, .* for {asked},"):
        check_launched(make_recipe("mixed_precision=bf16"), {"ACCELERATE_MIXED_PRECISION": asked})


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is here")
def test_a_missing_deepspeed_is_said_with_the_command(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("parallel=zero2")
    settings = zero_settings(recipe, {})
    assert settings is not None
    with pytest.raises(InputError, match=re.escape("pip install 'limner[deepspeed]'")):
        build_plugin(recipe, settings)
