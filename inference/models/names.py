"""Names and paths of base models."""

from __future__ import annotations

import os
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
"""The embedded models."""


def resolve_path(path: str) -> str:
    """Return the folder of an embedded model's name; other paths unchanged."""
    index = ASSETS / path / "model_index.json"
    return str(ASSETS / path) if os.path.isfile(index) else path  # noqa: PTH113 (may be long)


def is_single_file(path: str | Path) -> bool:
    """Return whether a path has the suffix of a single file (`.safetensors`, `.ckpt`)."""
    return str(path).lower().endswith((".safetensors", ".ckpt"))


def path_of(model: Path) -> str:
    """Return a model's name in recipes: that of an embedded one, else its path."""
    return model.name if model.parent == ASSETS else str(model)


def file_model_name(model: Path) -> str:
    """Return the name for infotext: a folder's name, a file's without suffix."""
    return model.name if model.is_dir() else model.stem
