"""Clips: drawn by models of any video family."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.clips.command import draw_recipe, report_recipe
    from inference.clips.drawing import ClipDrawing, Way, draw_clips
    from inference.clips.memory import Placement, decoding_bytes, needs_of
    from inference.clips.output import contact_sheet, write_webp
    from inference.clips.requests import expand

__all__ = [
    "ClipDrawing",
    "Placement",
    "Way",
    "contact_sheet",
    "decoding_bytes",
    "draw_clips",
    "draw_recipe",
    "expand",
    "needs_of",
    "report_recipe",
    "write_webp",
]

__getattr__ = lazy(__name__, __file__)
