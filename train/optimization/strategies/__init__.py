"""Strategies of parallelism: what each process of a run holds, and how a step is taken together."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.optimization.strategies.base import Content, Shown, Strategy
    from train.optimization.strategies.ddp import DataParallel

__all__ = [
    "Content", "DataParallel", "Shown", "Strategy",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
