"""Gradients become new weights: optimizer, LR schedule, EMA, guards, training state."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.optimization.accelerator import build_accelerator, build_strategy, layout_of
    from train.optimization.footprint import TrainedBytes, state_bytes, trained_bytes
    from train.optimization.launch import as_launched
    from train.optimization.offload import is_worth_moving
    from train.optimization.optimization import Optimization
    from train.optimization.registry import lr_schedule, optimizer

__all__ = [
    "Optimization", "TrainedBytes", "as_launched", "build_accelerator", "build_strategy",
    "is_worth_moving", "layout_of", "lr_schedule", "optimizer", "state_bytes", "trained_bytes",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
