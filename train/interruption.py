"""How a run is stopped from outside: SIGINT and SIGTERM, in any of its processes."""

import torch
from accelerate import Accelerator

from inference import interruption
from inference.interruption import Interrupted

__all__ = ["Interrupted", "StopSignals"]


class StopSignals(interruption.StopSignals):
    """The first SIGINT or SIGTERM asks the run to end; the second ends it at once."""

    def of_all(self, accelerator: Accelerator) -> int:
        """The signal that one of the processes has had, known to all of them; 0 for none."""
        if accelerator.num_processes == 1:
            return self.number
        flags = accelerator.gather(torch.tensor([self.number], device=accelerator.device))
        return int(flags.max())
