"""What accelerate's config asks for, together with the recipe."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from inference.runtime import InputError
from train.config.recipe import TrainRecipe
from train.optimization.launch import as_launched, wrapping_of
from train.optimization.strategies.sharding import Wrapping

MakeRecipe = Callable[..., TrainRecipe]

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
"""As `accelerate launch` of accelerate 1.15 sets them."""


def test_without_accelerate_s_config_a_recipe_is_as_it_is(make_recipe: MakeRecipe) -> None:
    for recipe in (make_recipe(), make_recipe("parallel=fsdp"), make_recipe("parallel=zero2")):
        assert as_launched(recipe, {}) == recipe
        assert as_launched(recipe, {"ACCELERATE_USE_FSDP": "false"}) == recipe


def test_the_launcher_chooses_where_the_recipe_does_not(make_recipe: MakeRecipe) -> None:
    for recipe in (make_recipe(), make_recipe("parallel=fsdp")):
        found = as_launched(recipe, FSDP2)
        assert (found.parallel.strategy, found.parallel.cpu_offload) == ("fsdp", "none")
        assert wrapping_of(found, FSDP2) == Wrapping(reshards=True, on_cpu=False, classes=None)
    found = as_launched(make_recipe(), FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"})
    assert found.parallel.cpu_offload == "all"
    assert wrapping_of(found, FSDP2).on_cpu


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, Wrapping(reshards=False)),
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, Wrapping(classes=[])),
        (
            {"FSDP_TRANSFORMER_CLS_TO_WRAP": "ResnetBlock2D, BasicTransformerBlock"},
            Wrapping(classes=["ResnetBlock2D", "BasicTransformerBlock"]),
        ),
    ],
)
def test_settings_that_are_honoured(
    settings: dict[str, str], expected: Wrapping, make_recipe: MakeRecipe
) -> None:
    variables = FSDP2 | settings
    assert wrapping_of(as_launched(make_recipe(), variables), variables) == expected


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ({"FSDP_VERSION": "1"}, (), "fsdp_version: 1, .* set fsdp_version: 2"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, (), "SIZE_BASED_WRAP: expected TRANSFOR"),
        ({"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, (), "FULL_STATE_DICT: expected SHARDED_"),
        ({"FSDP_IGNORED_MODULES": "x"}, (), "fsdp_ignored_modules: x: is not supported"),
        ({"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, (), "offload: true: is not"),
        (
            {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            (),
            "fsdp_activation_checkpointing: true, and the recipe says gradient_checkpointing",
        ),
        (
            {},
            ("parallel=zero2",),
            "parallel.strategy: zero2 in the recipe, but accelerate's config asks for FSDP",
        ),
        (
            {},
            ("parallel={strategy: fsdp, cpu_offload: all}",),
            "parallel.cpu_offload: all, and accelerate's config says fsdp_offload_params: false",
        ),
        ({}, ("memory.optimizer_on_cpu=true",), "memory.optimizer_on_cpu: cannot go with parallel"),
        ({}, ("optimizer.type=adamw8bit",), "optimizer.type: adamw8bit cannot go with"),
    ],
)
def test_settings_that_are_refused(
    settings: dict[str, str],
    overrides: tuple[str, ...],
    message: str,
    make_recipe: MakeRecipe,
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_launched(make_recipe(*overrides), FSDP2 | settings)
    assert re.match("accelerate's config|parallel", str(caught.value))


def test_activation_checkpointing_is_the_recipe_s(make_recipe: MakeRecipe) -> None:
    variables = FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}
    assert as_launched(make_recipe("gradient_checkpointing=true"), variables)
