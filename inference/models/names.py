"""Names and paths of base models."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
"""The embedded models."""


def resolve_path(path: str) -> str:
    """An embedded model's name becomes its folder; everything else stays."""
    return str(ASSETS / path) if (ASSETS / path / "model_index.json").is_file() else path


def is_single_file(path: str | Path) -> bool:
    """Whether a path is named as single files (`.safetensors`, `.ckpt`) are."""
    return str(path).lower().endswith((".safetensors", ".ckpt"))


def path_of(model: Path) -> str:
    """What recipes call a model by: the name of an embedded one, else its path."""
    return model.name if model.parent == ASSETS else str(model)


def file_model_name(model: Path) -> str:
    """As infotext has it: a folder's name, a file's without its ending."""
    return model.name if model.is_dir() else model.stem
