"""Protection of the weights from values that are not finite, with the names of their images."""

from collections.abc import Callable
from math import isfinite
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from train.common import Batch, NonFiniteError, of_all
from train.config import GuardConfig
from train.data import shown

MAX_SCALER_SKIPS = 50
"""In a row; by then fp16's loss scale has sunk from 65536 to nothing."""


class Guard:
    """Reads the norm and the losses of an optimizer step, then allows the step or not.

    All processes reach the same decision.
    """

    def __init__(
        self, config: GuardConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.say = say
        self.counts = {"skipped": 0, "skipped_in_a_row": 0, "scaler_skipped": 0, "scaler_row": 0}
        """Of the run so far; stored in its checkpoints."""
        self.grad_norm = 0.0
        """Of the last step, before clipping."""
        self._names: list[str] = []
        self._losses: list[Tensor] = []
        self._values: list[float] = []
        """The losses, as they were read."""
        self._loss_is_faulty = False
        """Whether one of any process is not finite."""

    def watch(self, losses: Tensor, batch: Batch) -> None:
        """Record the losses (b,) of this process's micro-batch."""
        self._names += batch["names"]
        self._losses.append(losses.detach())

    def pictures(self) -> str:
        """Return the images of the step so far, of all processes, for messages."""
        return shown(of_all(self.accelerator, self._names))

    def allows(self, step: int) -> bool:
        """Return whether what was read may change the weights; then forget the step's images.

        Args:
            step: the step's number, for messages.

        Raises:
            NonFiniteError: they are not finite, and the recipe says stop, or too many steps in a
                row were skipped. All processes raise it.
        """
        before = dict(self.counts)
        try:
            return self._allows(step)
        except NonFiniteError:
            self.counts = before  # this step was not skipped, and is repeated
            raise

    def _allows(self, step: int) -> bool:
        names, losses, loss_is_faulty = self._names, self._values, self._loss_is_faulty
        self._names, self._losses, self._values = [], [], []
        is_finite = isfinite(self.grad_norm)
        if not loss_is_faulty and self.accelerator.scaler is not None:
            self._count("scaler_skipped", "scaler_row", not is_finite)
            if self.counts["scaler_row"] > MAX_SCALER_SKIPS:
                raise NonFiniteError(
                    f"fp16's gradients overflow at any scale of the loss, up to step {step}: "
                    "mixed_precision=bf16 has the range of fp32"
                )
            is_finite = True  # the scaler decides by itself
        faults = loss_is_faulty or not is_finite
        self._count("skipped", "skipped_in_a_row", faults)
        if not faults:
            return True
        if loss_is_faulty:
            pairs = zip(names, losses, strict=True)
            faulty = [f"{name} ({loss})" for name, loss in pairs if not isfinite(loss)]
            what = f"loss is not finite at step {step}: {shown(of_all(self.accelerator, faulty))}"
        else:
            pictures = shown(of_all(self.accelerator, names))
            what = f"gradients are not finite at step {step}, while its losses are: {pictures}"
        self._refuse(what)
        return False

    def _refuse(self, what: str) -> None:
        if self.config.non_finite == "stop":
            raise NonFiniteError(what)
        row, limit = self.counts["skipped_in_a_row"], self.config.max_skips_in_a_row
        if row > limit:
            raise NonFiniteError(
                f"{what}. More than {limit} steps in a row are so (guards.max_skips_in_a_row)"
            )
        self.say(f"warning: skipped, {self.counts['skipped']} so far: {what}")

    def _count(self, total: str, row: str, happens: bool) -> None:
        self.counts[total] += happens
        self.counts[row] = self.counts[row] + 1 if happens else 0

    def read(self, grad_norm: Tensor) -> None:
        """Read a step's gradient norm and losses at once: the host waits for the device here only.

        Args:
            grad_norm: of all processes together, on the device of the losses.
        """
        values = torch.cat([grad_norm.reshape(1), *self._losses])
        faulty = (~torch.isfinite(values[1:])).any().reshape(1)
        if self.accelerator.num_processes > 1:
            faulty = cast("Tensor", self.accelerator.gather(faulty.int())).max().reshape(1)
        flag, *read = torch.cat([faulty.to(values.dtype), values]).tolist()
        self._loss_is_faulty = bool(flag)
        self.grad_norm, *self._values = read
