"""The places of processes: along the data, and along the frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inference.parallel.frames import Ring
from inference.runtime import LONGEST_WAIT, InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Layout:
    """The place of a process in a grid of (data, context).

    Neighbours along context have consecutive ranks, since they exchange most: they compute the same
    examples together. Processes along data have different examples.
    """

    rank: int = 0
    """Of this process among all."""
    processes: int = 1
    context: int = 1
    """Processes that compute an example together."""

    def __post_init__(self) -> None:
        if self.processes % self.context:
            raise InputError(
                f"parallel.context: {self.context} processes compute a clip together, which does "
                f"not divide the {self.processes} that were started"
            )

    @property
    def data_size(self) -> int:
        """Return the number of processes with examples of their own."""
        return self.processes // self.context

    @property
    def data_rank(self) -> int:
        """Return the number of the examples' share of this process."""
        return self.rank // self.context

    @property
    def context_rank(self) -> int:
        """Return the place along the frames."""
        return self.rank % self.context


_groups: dict[tuple[ProcessGroup, Layout, torch.device], ProcessGroup] = {}


def context_group(layout: Layout, device: torch.device | str = "cpu") -> ProcessGroup | None:
    """Return the process group that computes the examples of this process; None if it is alone.

    All processes must ask for it together, the first time.

    Args:
        layout: this process's place.
        device: between whose memories the group exchanges tensors.
    """
    if layout.context == 1:
        return None
    import torch.distributed as dist

    everyone, device = dist.group.WORLD, torch.empty(0, device=device).device
    assert everyone is not None, "parallel.context needs several processes"
    key = everyone, layout, device
    if key not in _groups:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # which NCCL takes
        backend = dist.get_default_backend_for_device(device.type)
        for first in range(0, layout.processes, layout.context):
            ranks = list(range(first, first + layout.context))
            group: Any = dist.new_group(ranks, timeout=LONGEST_WAIT, backend=backend)
            if layout.rank in ranks:
                _groups[key] = group
    return _groups[key]


def ring_of(layout: Layout, device: torch.device | str = "cpu") -> Ring | None:
    """Return the processes that compute this one's examples, in their order; None if it is alone.

    As `context_group`.
    """
    group = context_group(layout, device)
    return None if group is None else Ring(group)
