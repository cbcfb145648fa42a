"""Logging: TensorBoard, preview grids, validation."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.monitoring.loss_log import LossLog
    from train.monitoring.previews import grid_images
    from train.monitoring.reports import Reports, build_grid
    from train.monitoring.tracking import ProgressBar, StepClock
    from train.monitoring.validation import Validation, still_examples, timesteps_of

__all__ = [
    "LossLog",
    "ProgressBar",
    "Reports",
    "StepClock",
    "Validation",
    "build_grid",
    "grid_images",
    "still_examples",
    "timesteps_of",
]

__getattr__ = lazy(__name__, __file__)
