"""Dry run: what a run would cost, computed before it starts.

This module imports nothing of `inference`: `python -m train.plan` imports it before it checks that
no other package shadows ours.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.plan.base import skeleton
    from train.plan.plan import plan_run
    from train.plan.traffic import BANDWIDTH, bandwidth_in

__all__ = ["BANDWIDTH", "bandwidth_in", "plan_run", "skeleton"]

_MODULES = {
    "BANDWIDTH": "train.plan.traffic",
    "bandwidth_in": "train.plan.traffic",
    "plan_run": "train.plan.plan",
    "skeleton": "train.plan.base",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
