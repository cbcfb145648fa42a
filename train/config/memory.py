"""Typed options of the memory of a training run."""

from dataclasses import dataclass

from inference.config import MemoryConfig


@dataclass
class TrainMemoryConfig(MemoryConfig):
    """Memory of the GPU in training: where weights and trained state lie."""
