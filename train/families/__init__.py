"""The training halves of the model families: the rest of `train/` does not switch on families."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.families.base import (
        ExampleKind,
        FamilyTraining,
        check_clips_are_given,
        check_no_clips_are_given,
        plain_denoising,
    )
    from train.families.registry import TRAINING, build_denoising, register_training, training_of

__all__ = [
    "TRAINING", "ExampleKind", "FamilyTraining", "build_denoising", "check_clips_are_given",
    "check_no_clips_are_given", "plain_denoising", "register_training", "training_of",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
