"""The typed recipe of guards: what becomes of a step whose numbers are not finite."""

from dataclasses import dataclass
from typing import Literal

from train.faults import Faults, at_least

MAX_SKIPS_IN_A_ROW = 10


@dataclass
class GuardConfig:
    """What happens to a step whose losses or gradients are not finite."""

    non_finite: Literal["stop", "skip"] = "stop"
    """`stop` ends the run, names the pictures and saves the state before that step. `skip` leaves
    the step out: its pictures are named and the weights stay as they are, while the learning rate
    and the average (ema) go on as in any step. Steps that fp16's loss scaling leaves out by itself
    are no fault, and counted apart."""
    max_skips_in_a_row: int = MAX_SKIPS_IN_A_ROW
    """With `skip`: more steps one after the other end the run."""

    def faults(self) -> Faults:
        yield from at_least(1, max_skips_in_a_row=self.max_skips_in_a_row)

    def idle(self) -> Faults:
        if self.non_finite == "stop" and self.max_skips_in_a_row != MAX_SKIPS_IN_A_ROW:
            yield "max_skips_in_a_row", "has no effect with non_finite: stop"
