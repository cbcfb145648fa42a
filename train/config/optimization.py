"""Typed options of optimization: the optimizer and the LR schedule."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from inference.recipe import option_faults, resolve, takes
from inference.runtime import InputError
from train.config.rules import Faults, at_least

Registry = dict[str, str | Callable[..., Any]]
"""Name -> function or class, or `module:name` of where it is."""

OPTIMIZERS: Registry = {
    name: f"train.optimization.optimizers:{name}" for name in ("adamw", "adamw8bit")
}
"""The known optimizers; `train.optimization.optimizer` adds others."""

LR_SCHEDULES: Registry = {
    name: f"train.optimization.lr_schedules:{name}"
    for name in (
        "constant",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "schedule",
    )
}
"""The known LR schedules; `train.optimization.lr_schedule` adds others."""

OPTIMIZER_GIVEN = ("params", "groups", "lr")
"""Parameters of an optimizer that are not among its options."""

SCHEDULE_GIVEN = ("steps", "warmup_steps", "rate", "optimizer", "last_epoch", "verbose")
"""Parameters of an LR schedule that are not among its options."""


def named_faults(
    kind: str,
    registry: Registry,
    options: Mapping[str, Any],
    refusal: Callable[[Any], str | None],
    given: Collection[str],
) -> Faults:
    """Yield what is wrong with `type` and `options`.

    Args:
        kind: a name of the registry, or `module:name`.
        registry: of the known ones.
        options: of what `kind` names.
        refusal: why what `module:name` means cannot be used; None if it can.
        given: parameters that are not among the options.
    """
    target = registry.get(kind)
    if isinstance(target, str):  # ours, whose options are keys of their own
        for name in options:
            yield f"options.{name}", f"type: {kind} takes no options but the keys beside them"
        return
    if target is None and ":" not in kind:
        near = difflib.get_close_matches(kind, registry, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(registry)
        yield "type", f"expected one of {known} or module:Class, got {kind!r}{hint}"
        return
    if target is None:
        try:
            target = resolve(kind)
        except InputError as error:
            yield "type", str(error)
            return
    if why := refusal(target):
        yield "type", f"{kind} {why}"
        return
    for name, message in option_faults(target, options, given):
        yield f"options.{name}", message


def function_of(kind: str, registry: Registry) -> Callable[..., Any]:
    """Return what a sound `type` names."""
    target = registry.get(kind, kind)
    return resolve(target) if isinstance(target, str) else target


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function."""
    return inspect.signature(function).parameters


def is_kind_of(target: Any, name: str) -> bool:
    """Return whether a class is derived from torch's of this name; torch is not imported."""
    bases = target.__mro__ if isinstance(target, type) else ()
    return any(one.__name__ == name and one.__module__.startswith("torch.optim") for one in bases)


def optimizer_refusal(target: Any) -> str | None:
    """Return why something cannot be an optimizer."""
    if not callable(target):
        return "is no class"
    if not isinstance(target, type):  # a function that a plug-in has registered
        return None
    if not is_kind_of(target, "Optimizer"):
        return "is no torch.optim.Optimizer"
    if not takes(target, "lr"):
        return "has no parameter lr, so that no learning rate could be set"
    closure = parameters_of(target.step).get("closure")  # type: ignore[attr-defined]
    if closure is not None and closure.default is closure.empty:
        return "needs a closure in each step, which this trainer does not give"
    return None


def schedule_refusal(target: Any) -> str | None:
    """Return why something cannot be an LR schedule."""
    if not callable(target):
        return "is no class or function"
    if isinstance(target, type) and not is_kind_of(target, "LRScheduler"):
        return "is no torch.optim.lr_scheduler.LRScheduler"
    if isinstance(target, type) and "metrics" in parameters_of(target.step):  # type: ignore[attr-defined]
        return "needs a metric in each step, which this trainer does not give"
    return None


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

    registries: ClassVar[dict[str, Registry]] = {"type": OPTIMIZERS}

    type: str = "adamw"
    """`adamw` of torch, `adamw8bit` of bitsandbytes with 8-bit state, or `module:Class`, as in
    `torch.optim:Adagrad`, with the defaults of the class and `options`. Of the keys below it gets
    learning_rate, and betas, weight_decay and epsilon where they are not at their defaults. A
    module other than torch.optim needs consent (docs/extending.md). 8-bit state saves 6 bytes per
    trained number and, on a GPU, waits once per tensor: it pays where whole networks are trained,
    not for a LoRA."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `module:Class` by their names."""
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

    @property
    def is_ours(self) -> bool:
        """Whether it is built in, and so takes all keys."""
        return isinstance(OPTIMIZERS.get(self.type), str)

    def changed(self) -> dict[str, Any]:
        """Return the keys that are passed on if they are not at their defaults, by argument."""
        usual = OptimizerConfig()
        keys = {"betas": "betas", "weight_decay": "weight_decay", "epsilon": "eps"}
        return {
            argument: getattr(self, key)
            for key, argument in keys.items()
            if tuple_of(getattr(self, key)) != tuple_of(getattr(usual, key))
        }

    def passed(self) -> dict[str, Any]:
        """Return those of them that the optimizer takes and `options` leaves out."""
        target = function_of(self.type, OPTIMIZERS)
        return {
            name: value
            for name, value in self.changed().items()
            if takes(target, name) and name not in self.options
        }

    def idle(self) -> Faults:
        if self.is_ours or next(self.type_faults(), None):
            return
        for name in self.changed().keys() - self.passed():
            key = "epsilon" if name == "eps" else name
            yield key, f"has no effect with type: {self.type}, or beside options.{name}"

    def type_faults(self) -> Faults:
        """Yield what is wrong with `type` and `options`."""
        yield from named_faults(
            self.type, OPTIMIZERS, self.options, optimizer_refusal, OPTIMIZER_GIVEN
        )

    def faults(self) -> Faults:
        yield from self.type_faults()
        yield from at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        yield from at_least(0, epsilon=self.epsilon)
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"must lie in 0 … 1 (1 excluded), got {list(self.betas)}"
        for part, rate in self.learning_rates.items():
            if rate < 0:
                yield f"learning_rates.{part}", f"must not be negative, got {rate}"


def tuple_of(value: Any) -> Any:
    """Return a value, of a list the tuple."""
    return tuple(value) if isinstance(value, list) else value


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

    registries: ClassVar[dict[str, Registry]] = {"type": LR_SCHEDULES}

    type: str = "constant"
    """Shape after the warm-up: constant, linear, cosine, cosine_with_restarts, polynomial, or
    `schedule`, which follows the key of that name; or `module:Class` with `options`, for example
    `torch.optim.lr_scheduler:StepLR`. A module other than torch's needs consent
    (docs/extending.md)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `module:Class` by their names."""
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
        yield from named_faults(
            self.type, LR_SCHEDULES, self.options, schedule_refusal, SCHEDULE_GIVEN
        )
        yield from at_least(0, warmup_steps=self.warmup_steps)
        yield from at_least(1, num_cycles=self.num_cycles)
        yield from at_least(0, power=self.power)
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
