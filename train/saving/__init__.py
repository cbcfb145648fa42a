"""Checkpoints and artifacts of a run, and what artifacts say about it."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.saving.artifact_metadata import ArtifactMetadata
    from train.saving.savings import Savings

__all__ = ["ArtifactMetadata", "Savings"]

__getattr__ = lazy(__name__, __file__)
