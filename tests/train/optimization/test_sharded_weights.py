"""Weights in shares, of one process: what is shown is what whole weights show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from inference.runtime import InputError
from train.config.recipe import TrainRecipe
from train.objectives import Objective
from train.objectives.loading import load_objective
from train.optimization.strategies.base import Shown, Strategy
from train.optimization.strategies.ddp import DataParallel
from train.optimization.strategies.fsdp import FullySharded
from train.optimization.strategies.sharding import Wrapping

ALONE: Any = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, is_main_process=True, scaler=None
)


@pytest.fixture(autouse=True)
def process_group(tmp_path: Path) -> Iterator[None]:
    place = f"file://{tmp_path.with_suffix('.store')}"
    dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def averages_of(objective: Objective) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(one.shape, generator=generator) * 0.1 for one in objective.parameters()]


@torch.inference_mode()
def predicted(objective: Objective) -> Tensor:
    base: Any = objective.base
    width = base.prompt_shape[1]
    latents = torch.arange(4 * 8 * 8).reshape(1, 4, 8, 8) / 100
    states = torch.arange(5 * width).reshape(1, 5, width) / 1000
    dtype = torch.bfloat16
    return base.denoiser(
        latents.to(dtype), torch.tensor([5]), encoder_hidden_states=states.to(dtype)
    ).sample


def shown_by(strategy: Strategy, objective: Objective) -> dict[str, Any]:
    """What previews predict, what artifacts are written from, and the weights afterwards."""
    strategy.shard(objective)
    averages = averages_of(objective)
    bf16 = Shown(averages, lambda _, value: value.half().bfloat16())
    plain = Shown(averages, lambda _, value: value)
    objective.eval()
    with strategy.shown(objective, bf16):
        first = predicted(objective)
        second = predicted(objective)
    assert torch.equal(first, second)
    with strategy.whole_on_first(objective, plain):
        saved = {name: one.clone() for name, one in objective.state_dict().items()}
    after = [strategy.local(one).detach().clone() for one in objective.parameters()]
    return {"seen": first, "after": after, "averages": averages, **saved}


@pytest.mark.parametrize("reshards", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["lora", "text_to_image"])
def test_shown_weights_are_those_of_whole_ones(
    kind: str, reshards: bool, make_recipe: Callable[..., TrainRecipe]
) -> None:
    recipe = make_recipe(f"objective={{type: {kind}}}", "mixed_precision=bf16")
    whole, divided = (load_objective(recipe, torch.device("cpu")) for _ in range(2))
    before = [one.detach().clone() for one in whole.parameters()]
    expected = shown_by(DataParallel(recipe, ALONE), whole)
    found = shown_by(FullySharded(recipe, ALONE, Wrapping(reshards)), divided)
    assert all(isinstance(one, DTensor) for one in divided.parameters())
    assert all(isinstance(one, DTensor) for one in divided.base.denoiser.parameters())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        values = value if isinstance(value, list) else [value]
        others = found[name] if isinstance(value, list) else [found[name]]
        assert all(torch.equal(one, two) for one, two in zip(values, others, strict=True)), name
    assert all(torch.equal(*pair) for pair in zip(before, found["after"], strict=True))


def test_classes_that_a_model_lacks_are_named(make_recipe: Callable[..., TrainRecipe]) -> None:
    recipe = make_recipe()
    objective = load_objective(recipe, torch.device("cpu"))
    strategy = FullySharded(recipe, ALONE, Wrapping(classes=["LlamaLayer"]))
    with pytest.raises(InputError, match="fsdp_transformer_layer_cls_to_wrap: LlamaLayer is no"):
        strategy.shard(objective)
