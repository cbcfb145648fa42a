"""Losses: a batch becomes one loss per example."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.losses.denoising import Denoising, check_weights
    from train.losses.frozen_prior import FrozenPrior
    from train.losses.inpainting import InpaintingDenoising
    from train.losses.perceptual import EfficientNetLite0, load_efficientnet_lite0
    from train.losses.prior import prior_weight, total_loss, weigh_class_pictures
    from train.losses.timesteps import stratified_timesteps

__all__ = [
    "Denoising", "EfficientNetLite0", "FrozenPrior", "InpaintingDenoising", "check_weights",
    "load_efficientnet_lite0", "prior_weight", "stratified_timesteps", "total_loss",
    "weigh_class_pictures",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
