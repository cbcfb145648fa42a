"""A base model without weights: what a plan asks for sizes and shapes."""

from inference.models import ModelFiles as Configs
from inference.models import skeleton

__all__ = ["Configs", "skeleton"]
