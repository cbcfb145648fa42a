"""What the forward pass keeps for the backward pass, in the system's memory meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from inference.recipe import RecipeWarning
from train.config import TrainMemoryConfig

WORTH_MOVING = 2**16
"""Bytes; smaller tensors cost more time to move than memory to keep."""

Packed = tuple[Tensor, torch.device | None, tuple[int, ...]]
"""A tensor, where it came from if it was moved, and its strides there."""


def offloading(
    weights: Iterable[Tensor], config: TrainMemoryConfig, device: torch.device
) -> AbstractContextManager[object]:
    """Return the context of a forward pass, with `memory.activation_offload` on a GPU.

    As torch.autograd.graph.save_on_cpu, but without waits for the GPU, and weights stay.

    Args:
        weights: of the model and of what is trained.
        config: the run's.
        device: that of the run.
    """
    if not config.activation_offload or device.type == "cpu":
        return nullcontext()
    kept = {one.untyped_storage()._cdata for one in weights}

    def pack(tensor: Tensor) -> Packed:
        is_moved = tensor.device.type == device.type and is_worth_moving(tensor)
        if not is_moved or tensor.untyped_storage()._cdata in kept:
            return tensor, None, ()
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda")
        return copy.copy_(tensor, non_blocking=True), tensor.device, tensor.stride()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def is_worth_moving(tensor: Tensor) -> bool:
    """Return whether a tensor is large, and no view in which elements occur twice."""
    is_expanded = any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.nbytes >= WORTH_MOVING and not is_expanded and tensor.layout == torch.strided


def unpack(packed: Packed) -> Tensor:
    """Return a tensor where and as it lay before, so that the same kernels use it."""
    tensor, device, strides = packed
    if device is None:
        return tensor
    back = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device)
    return back.copy_(tensor, non_blocking=True)


def warn_of_idle_levers(config: TrainMemoryConfig, device: torch.device) -> None:
    """Warn of the keys of `memory` that move to the CPU what lies there already."""
    if device.type != "cpu":
        return
    levers = {
        "ema_on_cpu": config.ema_on_cpu,
        "optimizer_on_cpu": config.optimizer_on_cpu,
        "activation_offload": config.activation_offload,
    }
    for key in (key for key, is_set in levers.items() if is_set):
        warnings.warn(f"memory.{key}: has no effect on a CPU", RecipeWarning, stacklevel=2)
