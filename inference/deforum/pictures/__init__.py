"""Colour, masks, noise and sharpening of frames."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.pictures.color import color_values, grayscale, match_colors
    from inference.deforum.pictures.masks import (
        MaskSources,
        alpha_mask,
        compose_mask,
        is_blank,
        parse_mask,
        prepare_mask,
    )
    from inference.deforum.pictures.noise import NoiseSettings, add_noise
    from inference.deforum.pictures.sharpen import anti_blur, contrast
    from inference.deforum.pictures.word_masks import WordMasks

__all__ = [
    "MaskSources", "NoiseSettings", "WordMasks", "add_noise", "alpha_mask", "anti_blur",
    "color_values", "compose_mask", "contrast", "grayscale", "is_blank", "match_colors",
    "parse_mask", "prepare_mask",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
