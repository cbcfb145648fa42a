# SPDX-License-Identifier: Apache-2.0
"""The levers of `memory` and `quantization` on fake CUDA tensors, by the code that real runs use.

What fake tensors lack is replaced: bitsandbytes' packing and its product in 8 bits return tensors
of the sizes that its CUDA kernels allocate, and parameters that move become new ones, because
FakeTensors cannot change their device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inference.memory import quantization
from train.config import TrainRecipe
from train.objectives import Objective
from train.optimization.ema import Average
from train.optimization.fused_backward import FusedBackward
from train.optimization.optimizers import build_optimization
from train.optimization.tensorwise import TensorwiseOptimizer


class Unpinned(TorchFunctionMode):
    """Allocates pinned memory as other memory: fake tensors are never pinned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {key: one for key, one in (kwargs or {}).items() if key != "pin_memory"}
        return func(*args, **kwargs)


def move(part: nn.Module, device: torch.device, but: Collection[Tensor] = ()) -> None:
    """Move the frozen weights of a part, except some (`inference.memory.placement.move`)."""
    kept = {id(tensor) for tensor in but}
    new: dict[int, Any] = {}
    for module in part.modules():
        stores: tuple[dict[str, Any], ...] = module._parameters, module._buffers
        for store in stores:
            for name, old in store.items():
                if old is None or old.requires_grad or id(old) in kept:
                    continue
                if old.device.type == device.type:
                    continue
                if id(old) not in new:
                    moved = old.detach().to(device)
                    if isinstance(old, nn.Parameter):
                        moved = nn.Parameter(moved, requires_grad=False)
                    new[id(old)] = take_state(old, moved, device)
                store[name] = new[id(old)]


def take_state(old: Any, moved: Any, device: torch.device) -> Any:
    """Let a weight in 4 bits keep its scales, on its device."""
    if hasattr(old, "quant_state"):
        moved.quant_state = old.quant_state
        moved.quant_state.to(device)
    return moved


def int8_vectorwise_quant(inputs: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, None]:
    """Return what bitsandbytes allocates where no input is an outlier."""
    rows = inputs.numel() // inputs.shape[-1]
    return (
        torch.empty_like(inputs, dtype=torch.int8),
        torch.empty(rows, device=inputs.device),
        None,
    )


def int8_mixed_scaled_mm(
    inputs: Tensor, rows: Tensor, weight: Tensor, *scales: Tensor | None
) -> tuple[Tensor, None]:
    """Return a product as CUDA's kernels compute it: in int32, in fp16, in the inputs' dtype."""
    product = torch.ops.bitsandbytes.int8_linear_matmul(rows, weight)
    half = torch.empty_like(product, dtype=torch.float16)
    return half.to(inputs.dtype), None


def repack_nf4(layer: Any, weight: Tensor) -> None:
    """Pack a fake weight."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    made: Any = nn.Parameter(packed, requires_grad=False)
    made.quant_state = layer.quant_state = state
    layer.weight = made


class PlainWeight(nn.Parameter):
    """Stands for bitsandbytes' own subclass of parameters, which takes no fake tensors."""

    def __new__(cls, data: Tensor, *_: object, **options: object) -> Any:
        return nn.Parameter(data, requires_grad=False)


@contextmanager
def fakeable(is_packed: bool) -> Iterator[None]:
    """Replace what fake tensors lack inside the context."""
    packing = packable() if is_packed else nullcontext()
    with mock.patch("inference.memory.placement.move", move), Unpinned(), packing:
        yield


@contextmanager
def packable() -> Iterator[None]:
    """Replace what fake tensors lack in bitsandbytes inside the context."""
    from bitsandbytes import functional

    if "dynamic" not in functional.name2qmap:
        functional.name2qmap["dynamic"] = functional.create_dynamic_map().to("cuda")
    operations = torch.ops.bitsandbytes
    with (
        mock.patch.object(functional, "int8_vectorwise_quant", int8_vectorwise_quant),
        mock.patch.object(operations, "int8_mixed_scaled_mm", int8_mixed_scaled_mm, create=True),
        mock.patch("bitsandbytes.nn.modules.Params4bit", PlainWeight),
        mock.patch.object(quantization.nf4_class(), "repack", repack_nf4),
    ):
        yield


class FakeOptimization:
    """The optimizer's step tensor by tensor and the moving average, as `Optimization` has them."""

    def __init__(self, recipe: TrainRecipe, objective: Objective, trained: list[Any]) -> None:
        memory = recipe.memory

        def wrap(optimizer: Any) -> TensorwiseOptimizer:
            return TensorwiseOptimizer(optimizer, trained, memory, recipe.seed)

        optimizer, _ = build_optimization(recipe.optimizer, objective.members(recipe), wrap)
        assert isinstance(optimizer, TensorwiseOptimizer)
        self.optimizer = optimizer
        self.recipe, self.trained = recipe, trained
        self.fused: FusedBackward | None = None
        for one in trained:  # the first step makes the state
            one.grad = torch.zeros_like(one)
            optimizer.update(one)
            one.grad = None

    def begin(self) -> None:
        """Let steps be taken within the backward pass, if the recipe says so."""
        if self.recipe.memory.fused_backward:
            names: dict[Tensor, str] = {one: str(number) for number, one in enumerate(self.trained)}
            self.fused = FusedBackward(self.optimizer, names, self.recipe.max_grad_value)

    def step(self) -> None:
        """Take the step after the backward pass."""
        if self.fused is None:
            self.optimizer.step()
        else:
            self.fused.finish()


def average_of(recipe: TrainRecipe, trained: list[nn.Parameter]) -> Average | None:
    """Return the moving average as `Optimization` has it."""
    if recipe.ema is None:
        return None
    return Average(trained, recipe.ema.decay, on_cpu=recipe.memory.ema_on_cpu)
