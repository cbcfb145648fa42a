"""Dry run: what a run would cost, computed before it begins."""

from train.plan.base import skeleton
from train.plan.plan import plan_run

__all__ = ["plan_run", "skeleton"]
