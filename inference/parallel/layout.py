"""The places of processes: along the data, and along the frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass

from inference.runtime import InputError


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
