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
        joined_frames,
        replaced,
    )
    from inference.parallel.groups import (
        explain_loss,
        group_address,
        joined,
        names_lost_process,
        release_at_end,
    )
    from inference.parallel.heartbeat import SIGNS
    from inference.parallel.layout import Layout, context_group, ring_of
    from inference.parallel.restarts import Job, job_here

__all__ = [
    "SIGNS", "ImaginedRing", "Job", "Layout", "Pass", "Ring", "brought_to_first", "check_heads",
    "chunk_bounds", "chunks_of", "context_group", "device_mesh", "explain_loss", "group_address",
    "job_here", "joined", "joined_frames", "missing", "names_lost_process", "parallel_config",
    "release_at_end", "replaced", "ring_of", "share",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
