"""Gradients become new weights: optimizer, LR schedule, EMA, guards, training state."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.optimization.accelerator import build_accelerator
    from train.optimization.optimization import Optimization
    from train.optimization.registry import lr_schedule, optimizer, state_bytes

__all__ = ["Optimization", "build_accelerator", "lr_schedule", "optimizer", "state_bytes"]

__getattr__ = lazy(__name__, __file__)
