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
    "ImaginedRing", "Layout", "Pass", "Ring", "brought_to_first", "check_heads", "chunk_bounds",
    "chunks_of", "context_group", "device_mesh", "joined", "missing", "parallel_config", "replaced",
    "ring_of", "share",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
