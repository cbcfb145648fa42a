"""Losses: a batch becomes one loss per example."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.losses.build import build_denoising
    from train.losses.denoising import Denoising
    from train.losses.frozen_prior import FrozenPrior
    from train.losses.perceptual import EfficientNetLite0, load_efficientnet_lite0
    from train.losses.prior import prior_weight, total_loss, weigh_class_pictures

__all__ = [
    "Denoising",
    "EfficientNetLite0",
    "FrozenPrior",
    "build_denoising",
    "load_efficientnet_lite0",
    "prior_weight",
    "total_loss",
    "weigh_class_pictures",
]

__getattr__ = lazy(__name__, __file__)
