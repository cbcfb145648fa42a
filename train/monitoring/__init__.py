"""Logging: TensorBoard, preview grids, validation."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.monitoring.previews import grid_images
    from train.monitoring.reports import Previews, build_grid
    from train.monitoring.run import Run, open_folder
    from train.monitoring.validation import Validation, still_examples, timesteps_of

__all__ = [
    "Previews", "Run", "Validation", "build_grid", "grid_images", "open_folder", "still_examples",
    "timesteps_of",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
