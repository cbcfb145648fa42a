"""How several processes divide work, on plain PyTorch modules."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.parallel.layout import Layout

__all__ = ["Layout"]

__getattr__ = lazy(__name__, __file__)
