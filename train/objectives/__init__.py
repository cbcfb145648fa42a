"""Objectives: what is trained, and its loss. One file each."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.objectives.base import Member, Objective
    from train.objectives.loading import (
        BaseReader,
        drawn_dtype,
        enable_gradient_checkpointing,
        load_objective,
        objective_on,
        read_base,
        read_precision,
    )
    from train.objectives.lora import LoraObjective

__all__ = [
    "BaseReader", "LoraObjective", "Member", "Objective", "drawn_dtype",
    "enable_gradient_checkpointing", "load_objective", "objective_on", "read_base",
    "read_precision",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
