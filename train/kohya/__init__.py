"""Translate kohya's dataset TOML into recipe keys."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.kohya.config import KOHYA_SOURCES

__all__ = ["KOHYA_SOURCES"]

__getattr__ = lazy(__name__, __file__)
