"""Translate kohya's dataset TOML into recipe keys."""

from train.kohya.config import KOHYA_SOURCES

__all__ = ["KOHYA_SOURCES"]
