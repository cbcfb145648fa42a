"""How several processes divide work, on plain PyTorch modules."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.parallel.context import (
        check_heads,
        device_mesh,
        missing,
        parallel_config,
        share,
    )
    from inference.parallel.layout import Layout

__all__ = ["Layout", "check_heads", "device_mesh", "missing", "parallel_config", "share"]

__getattr__ = lazy(__name__, __file__)
