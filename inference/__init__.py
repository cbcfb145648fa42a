"""Inference: from an artifact and a recipe to images, clips and animations."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `__version__`, which is read from the clone or the installed metadata when asked."""
    if name == "__version__":
        from inference.runtime import limner_version

        return limner_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
