"""Translate kohya's dataset TOML into recipe keys."""
