"""A base model without weights, from which a plan takes sizes and shapes."""

from inference.models import ModelFiles as Configs
from inference.models import skeleton

__all__ = ["Configs", "skeleton"]
