"""Train: from a recipe to a run directory and an artifact."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `__version__`, which is read from the clone or the installed metadata when asked."""
    if name == "__version__":
        from inference.runtime import limner_version

        return limner_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
