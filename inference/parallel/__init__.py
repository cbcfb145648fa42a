"""How several processes divide work, on plain PyTorch modules."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.parallel.groups import (
        explain_loss,
        group_address,
        joined,
        names_lost_process,
        release_at_end,
    )
    from inference.parallel.heartbeat import SIGNS
    from inference.parallel.layout import Layout
    from inference.parallel.restarts import Job, job_here

__all__ = [
    "SIGNS", "Job", "Layout", "explain_loss", "group_address", "job_here", "joined",
    "names_lost_process", "release_at_end",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
