"""How several processes divide work, on plain PyTorch modules."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.parallel.frames import (
        ImaginedRing,
        Pass,
        Ring,
        brought_to_first,
        chunk_bounds,
        chunks_of,
        joined,
        replaced,
    )
    from inference.parallel.layout import Layout, context_group, ring_of

__all__ = [
    "ImaginedRing", "Layout", "Pass", "Ring", "brought_to_first", "chunk_bounds", "chunks_of",
    "context_group", "joined", "replaced", "ring_of",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
