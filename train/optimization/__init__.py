"""Gradients become new weights: optimizer, LR schedule, EMA, guards, training state."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.optimization.accelerator import build_accelerator
    from train.optimization.ema import ShownWeights
    from train.optimization.guards import Guard
    from train.optimization.optimizers import build_optimization, prepare
    from train.optimization.registry import lr_schedule, optimizer, state_bytes
    from train.optimization.training_state import TrainingState
    from train.optimization.update import WeightUpdate

__all__ = [
    "Guard",
    "ShownWeights",
    "TrainingState",
    "WeightUpdate",
    "build_accelerator",
    "build_optimization",
    "lr_schedule",
    "optimizer",
    "prepare",
    "state_bytes",
]

__getattr__ = lazy(__name__, __file__)
