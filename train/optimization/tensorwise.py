"""The optimizer's step for one tensor after the other: on bf16 weights, on the CPU, or in hooks.

Stochastic rounding: Gupta et al. 2015, arXiv 1502.02551; for bf16 weights Zamirai et al. 2020,
arXiv 2010.06192, with Kahan's compensation as the other way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inference.runtime import InputError
from train.common import derive_seed
from train.config import OptimizerConfig, TrainMemoryConfig
from train.optimization.registry import create_optimizer, is_mean

LOST = "lost_in_rounding"
"""Key of Kahan's compensation in a tensor's state."""

CUT_OFF = 0xFFFF
"""Bits of fp32 that bf16 lacks."""


class TensorwiseOptimizer(Optimizer):
    """Takes the steps of another optimizer for one tensor after the other.

    bf16 weights, and those whose steps are computed on the CPU, take their step as an fp32 copy.
    The state is kept by the inner optimizer under the tensors themselves.
    """

    def __init__(
        self,
        inner: Optimizer,
        parameters: Sequence[Tensor],
        config: TrainMemoryConfig,
        seed: int,
    ) -> None:
        # Not super().__init__: groups and state are those of the inner optimizer.
        self.inner = inner
        self.config = config
        self.seed = seed
        self.places = {one: number for number, one in enumerate(parameters)}
        groups = enumerate(inner.param_groups)
        self.groups = {one: number for number, group in groups for one in group["params"]}
        self.step_number = 0
        """Of the optimizer step that is taken, from 1."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    @property
    def skips_on_device(self) -> bool:
        """Whether the device can refuse a step by itself, without the host's waiting for it."""
        amp = getattr(self.inner, "_step_supports_amp_scaling", False)
        return amp and not self.config.optimizer_on_cpu

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take the step of every tensor that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter)

    @torch.no_grad()
    def update(self, parameter: Tensor, refused: Tensor | None = None) -> None:
        """Take the step of a tensor, which has a gradient.

        Args:
            parameter: one of the optimizer's.
            refused: with `skips_on_device`, 1 where the step must change nothing, else 0; ().
        """
        group = self.inner.param_groups[self.groups[parameter]]
        is_rounded = parameter.dtype == torch.bfloat16
        if not is_rounded and not self.config.optimizer_on_cpu:
            self._step_alone(parameter, group, refused)
            return
        state = self.inner.state.pop(parameter, {})
        lost = state.pop(LOST, None)
        copy = self._copied(parameter)
        if lost is not None:
            copy += lost.to(copy)
        assert parameter.grad is not None
        copy.grad = self._copied(parameter.grad)
        if state:
            self.inner.state[copy] = {name: widened(one, copy) for name, one in state.items()}
        self._step_alone(copy, group, refused)
        state = self.inner.state.pop(copy, {})
        copy.grad = None
        if is_rounded:
            rounded = self._rounded(parameter, 0, copy, is_weight=True)
            for number, (name, one) in enumerate(state.items(), 1):
                if is_mean(one, copy):
                    state[name] = self._rounded(parameter, number, one)
            if self.config.rounding == "kahan":
                state[LOST] = (copy - rounded).to(torch.bfloat16)
            copy = rounded
        parameter.copy_(copy)
        self.inner.state[parameter] = state

    def _step_alone(self, tensor: Tensor, group: dict[str, Any], refused: Tensor | None) -> None:
        """Let the inner optimizer take its step for one tensor with a gradient."""
        inner: Any = self.inner
        groups = inner.param_groups
        inner.param_groups = [{**group, "params": [tensor]}]
        if refused is not None:
            inner.found_inf = refused
        try:
            inner.step()
        finally:
            inner.param_groups = groups
            if refused is not None:
                del inner.found_inf

    def _copied(self, tensor: Tensor) -> Tensor:
        """Return an fp32 copy, on the device that computes steps."""
        tensor = tensor.detach()
        if self.config.optimizer_on_cpu and tensor.device.type != "cpu":
            return on_host(tensor).float()
        return tensor.to(torch.float32, copy=True)

    def _rounded(
        self, parameter: Tensor, number: int, value: Tensor, is_weight: bool = False
    ) -> Tensor:
        """Return an fp32 tensor in bf16; `number` is that of the draw for this parameter."""
        nearest = ("nearest", "kahan") if is_weight else ("nearest",)
        if self.config.rounding in nearest:
            return value.to(torch.bfloat16)
        seed = derive_seed(self.seed, "rounding", self.step_number, self.places[parameter], number)
        generator = torch.Generator(value.device).manual_seed(seed)
        return stochastically_rounded(value, generator)

    def state_dict(self) -> dict[str, Any]:
        """Return that of the inner optimizer, with the tensors in the order of the groups."""
        found = self.inner.state_dict()
        found["state"] = dict(sorted(found["state"].items()))
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state without a change of its formats, to where steps are computed.

        torch and bitsandbytes convert a state to the format and the device of its parameter; empty
        integer tensors take the place of the parameters meanwhile, which keep both.
        """
        inner, on_cpu = self.inner, self.config.optimizer_on_cpu
        lists = [group["params"] for group in inner.param_groups]
        owners: dict[Tensor, Tensor] = {}
        for group, parameters in zip(inner.param_groups, lists, strict=True):
            devices = ["cpu" if on_cpu else one.device for one in parameters]
            places = [torch.empty(0, dtype=torch.int8, device=device) for device in devices]
            owners |= dict(zip(places, parameters, strict=True))
            group["params"] = places
        inner.load_state_dict(state_dict)
        for group, parameters in zip(inner.param_groups, lists, strict=True):
            group["params"] = parameters
        states = {owners.get(place, place): one for place, one in inner.state.items()}
        for one in states.values():
            if LOST in one:  # under this very string: pickle writes equal ones twice
                one[LOST] = one.pop(LOST)
        inner.state = defaultdict(dict, states)


def widened(value: Any, copy: Tensor) -> Any:
    """Return a part of a tensor's state as its fp32 copy takes its step with it."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.dtype == torch.bfloat16 and value.shape == copy.shape:
        return value.to(copy.device, torch.float32)
    return value.to(copy.device)


def stochastically_rounded(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return fp32 values in bf16, each rounded up with the probability of what is cut off.

    What is not finite is rounded as usual: a draw could turn NaN into a number.
    """
    draws = torch.randint(
        0, CUT_OFF + 1, value.shape, dtype=torch.int32, device=value.device, generator=generator
    )
    bits = draws.add_(value.view(torch.int32)).bitwise_and_(~CUT_OFF)
    usual = value.to(torch.bfloat16)
    return torch.where(value.isfinite(), bits.view(torch.float32).to(torch.bfloat16), usual)


def on_host(tensor: Tensor) -> Tensor:
    """Return a copy of a GPU's tensor in the system's memory, pinned for the bus's full speed."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor)


def check_steps_alone(config: OptimizerConfig) -> None:
    """Check that an optimizer's step for tensors one by one is its step for all of them.

    It is not where numbers of all tensors are taken together, as in Prodigy's step size.

    Raises:
        InputError: it is not, or it takes no step on a small tensor.
    """
    if config.is_ours:
        return
    ends = []
    for alone in (False, True):
        parameters = [torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(0.5, 2, 4)]
        taken = create_optimizer(config, [{"params": parameters}])
        if alone:
            taken = TensorwiseOptimizer(taken, parameters, TrainMemoryConfig(), 0)
        try:
            with torch.random.fork_rng(devices=[]):
                for number in range(3):
                    for one in parameters:
                        one.grad = one.sin() + 0.1 * number
                    taken.step()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"optimizer.type: {config.type} cannot take a step: {why}") from error
        ends.append(parameters)
    if not all(map(torch.equal, *ends)):
        raise InputError(
            f"optimizer.type: {config.type} computes its step from all tensors together, and "
            "memory.fused_backward, memory.optimizer_on_cpu and memory.trained_weights: bf16 take "
            "it for one after the other; take adamw, or leave these keys out"
        )
