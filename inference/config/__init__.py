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
        Offload,
    )
    from inference.config.images import (
        RESIZE_MODES,
        DrawSettings,
        HiresConfig,
        ImageConfig,
        ImageToImageConfig,
        InpaintConfig,
        check_size,
    )
    from inference.config.models import ArtifactConfig, BaseModelConfig
    from inference.config.recipes import DRAWING_RECIPES, AnimationRecipe, ImagesRecipe, draw_schema
    from inference.config.samplers import (
        AUTOMATIC_SCHEDULES,
        CHURNED,
        DEFAULT_RHOS,
        HEED_RANGE,
        HEED_S_NOISE,
        SAMPLERS,
        SCHEDULE_TYPES,
        draws_further_noise,
    )

__all__ = [
    "AUTOMATIC_SCHEDULES",
    "CHURNED",
    "DEFAULT_RHOS",
    "DRAWING_RECIPES",
    "HEED_RANGE",
    "HEED_S_NOISE",
    "RESIZE_MODES",
    "SAMPLERS",
    "SCHEDULE_TYPES",
    "AnimationRecipe",
    "ArtifactConfig",
    "BaseModelConfig",
    "Cache",
    "CacheConfig",
    "ClipConfig",
    "ClipSettings",
    "ClipsRecipe",
    "DrawSettings",
    "HiresConfig",
    "ImageConfig",
    "ImageToImageConfig",
    "ImagesRecipe",
    "InpaintConfig",
    "Offload",
    "check_size",
    "draw_schema",
    "draws_further_noise",
]

__getattr__ = lazy(__name__, __file__)
