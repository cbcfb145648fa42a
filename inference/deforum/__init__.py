"""Deforum animations: from a settings file to a video (Deforum for A1111 3.0)."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.animation import Animation, draw_animation, open_generator
    from inference.deforum.check import settings_report
    from inference.deforum.loop import IdentityGenerator, ModelGenerator
    from inference.deforum.settings import load_settings_recipe, recipe_settings

__all__ = [
    "Animation", "IdentityGenerator", "ModelGenerator", "draw_animation", "load_settings_recipe",
    "open_generator", "recipe_settings", "settings_report",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
