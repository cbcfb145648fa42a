"""Jobs that a launcher or a batch system starts again after a failure."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

ATTEMPTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""How often a job was started again: by the batch system, and in it by torchrun."""


@dataclass(frozen=True)
class Job:
    """A job, and which start of it this is."""

    id: str
    attempt: tuple[int, ...]

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Job | None:
        """Return the job that environment variables name; None without one."""
        attempt = tuple(int(variables.get(name) or 0) for name in ATTEMPTS)
        if number := variables.get("SLURM_JOB_ID"):
            return cls(f"slurm {number}", attempt)
        name = variables.get("TORCHELASTIC_RUN_ID", "")
        if not name:
            return None
        if name == "none":  # torchrun's default: the job is the launcher's process
            name = f"of {socket.gethostname()} {os.getppid()}"
        return cls(f"torchrun {name}", attempt)

    def __str__(self) -> str:
        return f"{self.id}#{'.'.join(map(str, self.attempt))}"

    def follows(self, other: str) -> bool:
        """Return whether this is a later start of the job that a text names."""
        name, _, attempt = other.rpartition("#")
        if name != self.id:
            return False
        return tuple(map(int, attempt.split("."))) < self.attempt


def job_here() -> Job | None:
    """Return the job of this process, if it has one."""
    return Job.of(os.environ)
