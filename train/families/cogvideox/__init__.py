"""The training half of CogVideoX: clips, v-prediction, first frames, frame packing."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.families.cogvideox.training import TRAINING

__all__ = ["TRAINING"]

__getattr__ = lazy(__name__, __file__)
