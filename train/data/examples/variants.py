"""The crops and mirror images of a picture that are encoded once, where these are random.

kohya's sd-scripts cache both mirror images too (`flip_aug` with `cache_latents`), and no random
crops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

from train.config import ExampleConfig

Config = TypeVar("Config", bound=ExampleConfig)


class Variant(NamedTuple):
    """One of the examples that an image or clip can give."""

    crop: int = 0
    """Number of the crop, from which its place is drawn; 0 unless crops are random."""
    is_mirrored: bool = False

    def settings(self, config: Config) -> Config:
        """Return the settings of an image with those of this variant alone."""
        return replace(config, flip=float(self.is_mirrored))


def variants_of(config: ExampleConfig, crops: int) -> list[Variant]:
    """Return the variants of an image that are cached, in order.

    Args:
        config: how the image becomes an example.
        crops: how many crops of an image are cached, if they are random.
    """
    numbers = range(crops if config.crops_anywhere else 1)
    mirrored = [False] * (config.flip < 1) + [True] * (config.flip > 0)
    return [Variant(number, one) for number in numbers for one in mirrored]
