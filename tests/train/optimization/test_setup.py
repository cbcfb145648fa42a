"""Optimizers, learning rates and number formats as the recipe says."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from inference.recipe.layers import RecipeWarning
from inference.runtime.errors import InputError
from train.common.distributed import uses_gpu
from train.config.optimization import LRSchedulerConfig, OptimizerConfig, parse_schedule
from train.config.recipe import TrainRecipe
from train.data.examples.build import build_examples
from train.data.sources.sources import find_sources
from train.objectives.loading import enable_gradient_checkpointing, load_objective
from train.optimization.accelerator import (
    build_accelerator,
    check_compression,
    check_launch,
)
from train.optimization.optimizers import (
    build_lr_scheduler,
    create_optimizer,
    parameter_groups,
    rate_course,
)
from train.runs import manifests
from train.runs.environments import changes_since
from train.runs.manifests import describe_environment
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


def two_parts() -> nn.Module:
    return nn.ModuleDict(
        {"unet": nn.Linear(3, 5), "text_encoder": nn.Linear(2, 2), "none": nn.ReLU()}
    )


def test_one_group_for_each_part() -> None:
    module = two_parts()
    config = OptimizerConfig(
        learning_rate=0.1,
        learning_rates={"text_encoder": 0.01},
        betas=(0.8, 0.9),
        weight_decay=0.3,
        epsilon=1e-5,
    )
    groups = create_optimizer(config, parameter_groups(config, module)).param_groups
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("unet", 0.1),
        ("text_encoder", 0.01),
    ]
    for group, part in zip(groups, ("unet", "text_encoder"), strict=True):
        assert group["params"] == list(module[part].parameters())  # type: ignore[index]
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.8, 0.9), 0.3, 1e-5)


def test_learning_rate_of_an_unknown_part_names_the_known_ones() -> None:
    config = OptimizerConfig(learning_rates={"textencoder": 0.1})
    with pytest.raises(InputError, match=r"textencoder is not trained; .* unet, text_encoder$"):
        parameter_groups(config, two_parts())


def test_adamw_is_the_published_one() -> None:
    """First step: the weight decays by lr * wd and moves by lr against the gradient's sign."""
    module = nn.ModuleDict({"unet": nn.Linear(1, 1, bias=False)})
    weight: Any = module["unet"].weight
    weight.data.fill_(2.0)
    weight.grad = torch.full((1, 1), 7.0)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    create_optimizer(config, parameter_groups(config, module)).step()
    assert weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1, abs=1e-6)


def test_adamw8bit_keeps_its_state_in_eight_bits() -> None:
    module = nn.ModuleDict({"unet": nn.Linear(64, 64)})
    config = OptimizerConfig(type="adamw8bit", learning_rate=0.1)
    optimizer = create_optimizer(config, parameter_groups(config, module))
    before = module["unet"].weight.clone()  # type: ignore[union-attr]
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weight, bias = module["unet"].parameters()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert optimizer.state[weight]["state2"].dtype == torch.uint8
    assert optimizer.state[bias]["state1"].dtype == torch.float32  # too small to be worth it
    assert torch.allclose(weight, before - 0.1 * 0.01 * before - 0.1, atol=5e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"type": "constant"}, {0: 1, 5: 1, 9: 1}),
        ({"type": "constant", "warmup_steps": 4}, {0: 0, 1: 0.25, 3: 0.75, 4: 1, 9: 1}),
        ({"type": "linear"}, {0: 1, 5: 0.5, 9: 0.1}),
        ({"type": "linear", "warmup_steps": 2}, {0: 0, 1: 0.5, 2: 1, 6: 0.5, 9: 0.125}),
        ({"type": "cosine"}, {0: 1, 5: 0.5, 9: 0.5 * (1 + math.cos(0.9 * math.pi))}),
        (
            {"type": "cosine_with_restarts", "num_cycles": 2},
            {0: 1, 4: 0.0954915, 5: 1, 9: 0.0954915},
        ),
        ({"type": "polynomial", "power": 2.0}, {0: 1, 5: 0.25, 9: 0.01}),
    ],
)
def test_learning_rate_at_each_of_ten_steps(
    options: dict[str, Any], expected: dict[int, float]
) -> None:
    config = OptimizerConfig(learning_rate=1.0, learning_rates={"text_encoder": 0.5})
    optimizer = create_optimizer(config, parameter_groups(config, two_parts()))
    course = rate_course(LRSchedulerConfig(**options), 1.0, 10)
    scheduler = build_lr_scheduler(optimizer, {"": course})
    rates = []
    for _ in range(10):
        unet, text_encoder = (group["lr"] for group in optimizer.param_groups)
        assert text_encoder == pytest.approx(unet / 2, abs=1e-6)
        rates.append(unet)
        optimizer.step()
        scheduler.step()
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-6)


def test_fp16_needs_a_gpu(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="fp16 needs a GPU; bf16 and fp32 work on CPUs"):
        build_accelerator(make_recipe("mixed_precision=fp16"))


def test_processes_that_accelerate_did_not_start_are_an_error(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were asked for, accelerate started 1"):
        build_accelerator(make_recipe())


def test_what_is_trained_keeps_the_precision_of_its_file(make_recipe: MakeRecipe) -> None:
    """Only what is frozen is rounded to the format of mixed precision."""
    recipe = make_recipe("objective={type: text_to_image}", "mixed_precision=bf16")
    objective = load_objective(recipe, torch.device("cpu"))
    base = objective.base
    file = f"{recipe.base_model.path}/unet/diffusion_pytorch_model.safetensors"
    for name, value in load_file(file).items():
        assert torch.equal(base.parts["unet"].get_parameter(name), value), name
    assert {parameter.dtype for parameter in base.parts["text_encoder"].parameters()} == {
        torch.bfloat16
    }
    assert {parameter.dtype for parameter in base.vae.parameters()} == {torch.float32}
    assert base.dtype == torch.bfloat16


def test_lora_layers_are_fp32_on_a_rounded_base(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("mixed_precision=bf16", "base_model.vae_precision=null")
    objective = load_objective(recipe, torch.device("cpu"))
    base = objective.base
    assert {parameter.dtype for parameter in objective.parameters()} == {torch.float32}
    frozen = [p for part in base.parts.values() for p in part.parameters() if not p.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "Megatron-LM"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "torch.compile (dynamo_backend: INDUCTOR; the recipe's key is speed.compile)",
        ),
    ],
)
def test_configs_of_accelerate_that_are_refused(
    variables: dict[str, str], name: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one line; what `accelerate launch` sets without them is taken."""
    check_launch({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "no"})
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=rf"^accelerate's config asks for {re.escape(name)}, .*$"):
        build_accelerator(make_recipe())


@pytest.mark.parametrize("is_forbidden", [False, True])
def test_a_gpu_that_accelerate_may_not_use(
    is_forbidden: bool, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 is refused in our words, and environment.json names what computes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Mock")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    monkeypatch.setattr(manifests, "driver_version", lambda: "570.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes" if is_forbidden else "no")
    assert uses_gpu() is not is_forbidden
    found = describe_environment()
    assert (found["device"] == "NVIDIA Mock") is not is_forbidden
    gpu = {"driver": "570.1", "cuda": torch.version.cuda, "cudnn": None, "capability": "8.9"}
    assert found.get("gpu") == (None if is_forbidden else gpu)
    if is_forbidden:
        with pytest.raises(InputError, match="needs a GPU, and ACCELERATE_USE_CPU forbids it"):
            build_accelerator(make_recipe("mixed_precision=fp16"))


def test_the_driver_is_what_its_own_tool_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifests.driver_version() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 570.86.10\necho 570.86.10\n")
    tool.chmod(0o755)
    assert manifests.driver_version() == "570.86.10"


def test_another_driver_is_another_environment() -> None:
    gpu = {"driver": "1", "cuda": "12.8"}
    before = {"device": "x", "gpu": gpu, "threads": 1}
    now = {**before, "gpu": {**gpu, "driver": "2"}}
    assert changes_since(before, now) == ["driver: 1 became 2"]
    assert changes_since({"device": "x"}, now) == []  # of a version that did not record it


def test_exactness_is_for_gpus(make_recipe: MakeRecipe) -> None:
    with pytest.warns(RecipeWarning, match="deterministic: has no effect on a CPU"):
        trainer = Trainer(make_recipe("deterministic=true"))
    trainer.close()


def test_resolution_must_fit_the_networks(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    base = load_objective(recipe, torch.device("cpu")).base
    sources = find_sources(recipe)
    assert build_examples(recipe, sources, base).resolution == 16
    assert build_examples(make_recipe("data.resolution=24"), sources, base).resolution == 24
    with pytest.raises(InputError, match=r"data\.resolution: 18 pixels .* take 16 or 20"):
        build_examples(make_recipe("data.resolution=18"), sources, base)


def test_gradient_checkpointing_reaches_every_part(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("objective={type: text_to_image, train_text_encoder: true}")
    objective = load_objective(recipe, torch.device("cpu"))
    enable_gradient_checkpointing(objective)
    for part in objective.base.parts.values():
        assert any(getattr(module, "gradient_checkpointing", False) for module in part.modules())


WITH_ENCODERS = {
    "lora": "{type: lora, rank: 2, train_text_encoder: true}",
    "embedding": "{type: textual_inversion, token: sks}",
    "whole": "{type: text_to_image, train_text_encoder: true}",
    "combined": "{type: combined, members: {word: {objective: {type: textual_inversion, "
    "token: sks}}, look: {objective: {type: lora, rank: 2}}}}",
    "lora of the unet": "{type: lora, rank: 2}",
    "hypernetwork": "{type: hypernetwork}",
}


@pytest.mark.parametrize("name", WITH_ENCODERS)
def test_layers_that_gradients_flow_through_are_computed_twice(
    name: str, make_recipe: MakeRecipe
) -> None:
    """With gradient checkpointing, and in each network; the gradients stay the same."""
    recipe = make_recipe(f"objective={WITH_ENCODERS[name]}")
    count, gradients = [], []
    for is_checkpointing in (False, True):
        objective = load_objective(recipe, torch.device("cpu"))
        base: Any = objective.base
        if is_checkpointing:
            enable_gradient_checkpointing(objective)
        objective.train()
        calls = {"text": 0, "unet": 0}

        def note(part: str, calls: dict[str, int] = calls) -> Any:
            return lambda *_: calls.update({part: calls[part] + 1})

        base.text_encoder.encoder.layers[1].mlp.register_forward_pre_hook(note("text"))
        base.unet.down_blocks[1].resnets[0].register_forward_pre_hook(note("unet"))
        states = base.encode_prompts(["red, sks"])
        noisy = torch.linspace(-1, 1, 64).view(1, 4, 4, 4).requires_grad_()
        base.predict(noisy, torch.tensor([400]), states).square().sum().backward()
        count.append(calls)
        gradients.append([one.grad for one in objective.parameters() if one.grad is not None])
    has_text = name not in ("lora of the unet", "hypernetwork")
    assert count == [{"text": 1, "unet": 1}, {"text": 1 + has_text, "unet": 2}]
    assert gradients[0] and all(map(torch.equal, *gradients))


def rates_of(text: str, steps: int, **options: Any) -> list[float]:
    """The rate of every step, of a part that has optimizer.learning_rate (1)."""
    group = {"name": "unet", "params": [nn.Parameter(torch.zeros(1))]}
    optimizer = torch.optim.SGD([group], lr=1.0)
    config = LRSchedulerConfig(type="schedule", schedule=text, **options)
    scheduler = build_lr_scheduler(optimizer, {"": rate_course(config, 1.0, steps)})
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_rates_by_step_as_in_a1111() -> None:
    assert rates_of("0.5:2, 0.25:3, 1e-1", 5) == [0.5, 0.5, 0.25, 0.1, 0.1]
    assert rates_of("0.5", 3) == [0.5] * 3
    assert rates_of("0.5:1, 0.25:-1", 3) == [0.5, 0.25, 0.25]
    assert rates_of("0.5", 4, warmup_steps=2) == [0.0, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''"),
        ("0.1:5, 0.2:5", "steps must rise: 5 after 5"),
        ("0.1, 0.2", "a rate without a step ends"),
        ("-1", "a number from 0 on"),
        ("0.1:5:6", "cannot read '0.1:5:6'"),
    ],
)
def test_rates_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_schedule(text)


def test_gradients_are_compressed_between_gpus_alone(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("parallel.gradient_compression=bf16")
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)

    def check(processes: int, device: torch.device) -> None:
        accelerator: Any = SimpleNamespace(num_processes=processes, device=device)
        check_compression(recipe, accelerator)

    check(2, gpu)
    with pytest.raises(InputError, match="gradient_compression: bf16 is for GPUs, got cpu"):
        check(2, cpu)
    with pytest.warns(RecipeWarning, match="gradient_compression: has no effect on one process"):
        check(1, gpu)
