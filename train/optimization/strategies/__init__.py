"""Strategies of parallelism: what each process of a run holds, and how a step is taken together."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.optimization.strategies.base import Content, Shown, Strategy
    from train.optimization.strategies.ddp import DataParallel
    from train.optimization.strategies.deepspeed import Zero
    from train.optimization.strategies.fsdp import FullySharded
    from train.optimization.strategies.sharding import Wrapping
    from train.optimization.strategies.zero_config import (
        build_plugin,
        is_on,
        without_variables,
        zero_settings,
    )

__all__ = [
    "Content", "DataParallel", "FullySharded", "Shown", "Strategy", "Wrapping", "Zero",
    "build_plugin", "is_on", "without_variables", "zero_settings",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
