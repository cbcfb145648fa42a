"""Typed recipes of image, clip and animation generation; imports neither torch nor diffusers."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.config.clips import (
        Cache,
        CacheConfig,
        ClipConfig,
        ClipSettings,
        ClipsRecipe,
    )
    from inference.config.images import (
        MOST_AT_ONCE,
        MOST_PIXELS,
        RESIZE_MODES,
        DrawSettings,
        HiresConfig,
        ImageConfig,
        ImageToImageConfig,
        InpaintConfig,
        check_size,
    )
    from inference.config.memory import MemoryConfig, swapping_faults
    from inference.config.models import ADAPTERS, ArtifactConfig, BaseModelConfig
    from inference.config.parallel import ParallelConfig
    from inference.config.recipes import DRAWING_RECIPES, AnimationRecipe, ImagesRecipe, draw_schema
    from inference.config.speed import DrawingSpeedConfig, SpeedConfig, prefixed

__all__ = [
    "ADAPTERS", "DRAWING_RECIPES", "MOST_AT_ONCE", "MOST_PIXELS", "RESIZE_MODES", "AnimationRecipe",
    "ArtifactConfig", "BaseModelConfig", "Cache", "CacheConfig", "ClipConfig", "ClipSettings",
    "ClipsRecipe", "DrawSettings", "DrawingSpeedConfig", "HiresConfig", "ImageConfig",
    "ImageToImageConfig", "ImagesRecipe", "InpaintConfig", "MemoryConfig",
    "ParallelConfig", "SpeedConfig", "check_size", "draw_schema", "prefixed", "swapping_faults",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
