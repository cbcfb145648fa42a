"""Dry run: what a run would cost, computed before it begins."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.plan.base import skeleton
    from train.plan.plan import plan_run

__all__ = ["plan_run", "skeleton"]

__getattr__ = lazy(__name__, __file__)
