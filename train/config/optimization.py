"""Typed options of optimization: the optimizer and the LR schedule."""

from dataclasses import dataclass, field
from typing import Literal

from train.config.rules import Faults, at_least

MAX_SKIPS_IN_A_ROW = 10


@dataclass
class GuardConfig:
    """What happens to a step whose losses or gradients are not finite."""

    non_finite: Literal["stop", "skip"] = "stop"
    """`stop` ends the run, names the images and saves the state before that step. `skip` skips the
    step: its images are reported and the weights do not change, while the learning rate and the EMA
    continue as in any step. Steps that fp16's loss scaling skips are not errors, and are counted
    separately."""
    max_skips_in_a_row: int = MAX_SKIPS_IN_A_ROW
    """With `skip`: more consecutive skipped steps end the run."""

    def faults(self) -> Faults:
        yield from at_least(1, max_skips_in_a_row=self.max_skips_in_a_row)

    def idle(self) -> Faults:
        if self.non_finite == "stop" and self.max_skips_in_a_row != MAX_SKIPS_IN_A_ROW:
            yield "max_skips_in_a_row", "has no effect with non_finite: stop"


@dataclass
class OptimizerConfig:
    """How gradients change the weights."""

    type: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW of torch, or bitsandbytes' with 8-bit state."""
    learning_rate: float = 1.0e-4
    """Learning rate of everything without a learning rate of its own."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by part of the objective: unet, text_encoder, …"""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running means of gradient and squared gradient."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    epsilon: float = 1.0e-8
    """Added to the denominator."""

    def faults(self) -> Faults:
        yield from at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        for part, rate in self.learning_rates.items():
            if rate < 0:
                yield f"learning_rates.{part}", f"must not be negative, got {rate}"


def parse_schedule(text: str) -> list[tuple[float, int | None]]:
    """Parse A1111's learning rates by step: (rate, step before which it holds; None: to the end).

    Raises:
        ValueError: invalid syntax; the message shows a valid example.
    """
    example = 'expected rates and steps as "0.005:100, 1e-3:1000, 1e-5"'
    entries: list[tuple[float, int | None]] = []
    for part in text.split(","):
        rate, colon, step = part.partition(":")
        try:
            entries.append((float(rate), int(step) if colon else None))
        except ValueError:
            raise ValueError(f"cannot read {part.strip()!r}; {example}") from None
        value, until = entries[-1]
        before = entries[-2][1] if len(entries) > 1 else 0
        if not 0 <= value < float("inf"):
            raise ValueError(f"a rate must be a number from 0 on, got {rate.strip()!r}")
        if before is None:
            raise ValueError(f"a rate without a step ends the schedule; {example}")
        if until == -1:  # A1111's notation for the end
            entries[-1] = (value, None)
        elif until is not None and until <= before:
            raise ValueError(f"steps must rise: {until} after {before}; {example}")
    return entries


@dataclass
class LRSchedulerConfig:
    """LR schedule over the run, counted in optimizer steps."""

    type: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "schedule"
    ] = "constant"
    """Shape after the warm-up; `schedule` uses the key of that name."""
    schedule: str | None = None
    """A1111's learning rates by step, as in `0.005:100, 1e-3:1000, 1e-5`: 0.005 before step 100,
    0.001 before step 1000, then 1e-5. Parts with their own learning rate are scaled in proportion
    to optimizer.learning_rate."""
    warmup_steps: int = 0
    """The learning rate rises linearly from 0 over this many steps (kohya: lr_warmup_steps)."""
    num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    power: float = 1.0
    """Exponent of polynomial."""

    def faults(self) -> Faults:
        yield from at_least(0, warmup_steps=self.warmup_steps)
        yield from at_least(1, num_cycles=self.num_cycles)
        if (self.type == "schedule") != (self.schedule is not None):
            yield "schedule", "goes with type: schedule, and that with it"
        try:
            parse_schedule(self.schedule or "1")
        except ValueError as error:
            yield "schedule", str(error)

    def idle(self) -> Faults:
        if self.num_cycles != 1 and self.type != "cosine_with_restarts":
            yield "num_cycles", f"has no effect with type: {self.type}"
        if self.power != 1.0 and self.type != "polynomial":
            yield "power", f"has no effect with type: {self.type}"


def schedule_faults(config: LRSchedulerConfig, key: str, name: str, steps: int) -> Faults:
    """Yield where an LR schedule does not fit into `steps`, whose recipe key is `name`."""
    try:
        last = parse_schedule(config.schedule or "1")[-1][1]
    except ValueError:
        last = None  # reported by the config itself
    if last is not None and last < steps:
        yield (
            f"{key}.schedule",
            f"ends at step {last}, before {name} ({steps}): give the last rate without a step, or "
            f"{name}={last}",
        )
    if config.warmup_steps >= steps:
        yield f"{key}.warmup_steps", f"must be below {name} ({steps})"
