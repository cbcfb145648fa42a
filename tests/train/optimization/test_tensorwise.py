"""Steps of one tensor after the other: the same as of all, rounded to bf16 as configured."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.runtime.errors import InputError
from train.config.devices import TrainMemoryConfig
from train.config.optimization import OptimizerConfig
from train.optimization.footprint import state_bytes, trained_bytes
from train.optimization.registry import create_optimizer
from train.optimization.tensorwise import (
    LOST,
    TensorwiseOptimizer,
    check_steps_alone,
    stochastically_rounded,
)

BF16 = torch.bfloat16


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Two tensors, one of a size that bitsandbytes keeps in 8 bits."""
    source = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=source).to(dtype) for shape in ((64, 80), (7,))]


def gradients(step: int) -> list[Tensor]:
    """Of a step; bf16 has their values."""
    source = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=source).to(BF16) for shape in ((64, 80), (7,))]


def take_steps(taken: Any, parameters: list[Tensor], *steps: int) -> None:
    for step in steps:
        if isinstance(taken, TensorwiseOptimizer):
            taken.step_number = step
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        taken.step()


def tensorwise(
    kind: str, parameters: list[Tensor], rate: float = 1e-2, **keys: Any
) -> TensorwiseOptimizer:
    inner = create_optimizer(OptimizerConfig(type=kind, learning_rate=rate), groups(parameters))
    return TensorwiseOptimizer(inner, parameters, TrainMemoryConfig(**keys), seed=3)


def groups(parameters: list[Tensor]) -> list[dict[str, object]]:
    return [{"params": [one]} for one in parameters]


KINDS = ["adamw", "adamw8bit", "torch.optim:Adagrad", "torch.optim:Adafactor"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_cpu", [False, True])
def test_steps_one_by_one_are_those_of_all(kind: str, on_cpu: bool) -> None:
    """Weights and state, byte for byte, for an optimizer that knows nothing of it."""
    whole, single = weights(), weights()
    plain = create_optimizer(OptimizerConfig(type=kind, learning_rate=1e-2), groups(whole))
    taken = tensorwise(kind, single, optimizer_on_cpu=on_cpu)
    check_steps_alone(OptimizerConfig(type=kind))
    for one, parameters in ((plain, whole), (taken, single)):
        take_steps(one, parameters, 1, 2, 3)
    assert all(map(torch.equal, whole, single))
    theirs, ours = plain.state_dict()["state"], taken.state_dict()["state"]
    assert list(ours) == [0, 1]
    for number, state in theirs.items():
        assert ours[number].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(ours[number][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "nearest"])
def test_bf16_follows_fp32(kind: str, rounding: Any) -> None:
    """Each step is that of fp32, rounded; with Kahan's compensation 16 bits are kept."""
    start = weights(BF16)
    exact, ours = [one.float() for one in start], [one.clone() for one in start]
    plain = create_optimizer(OptimizerConfig(type=kind, learning_rate=1e-3), groups(exact))
    keys: dict[str, Any] = {"trained_weights": "bf16", "rounding": rounding}
    taken = tensorwise(kind, ours, rate=1e-3, **keys)
    for one, parameters in ((plain, exact), (taken, ours)):
        take_steps(one, parameters, 1)
    ulp = [2.0 ** (torch.frexp(one)[1] - 8) for one in exact]
    for one, parameter, step in zip(exact, ours, ulp, strict=True):
        assert parameter.dtype == BF16
        far = (parameter.float() - one).abs() / step
        assert far.max() <= {"stochastic": 1.0}.get(rounding, 0.5) + 1e-3
        if rounding == "kahan":
            kept = parameter.float() + taken.state[parameter][LOST].float()
            assert ((kept - one).abs() / step).max() <= 2**-8
    state = taken.state[ours[0]]
    large = [one for one in state.values() if isinstance(one, Tensor) and one.shape == (64, 80)]
    assert torch.float32 not in {one.dtype for one in large}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "keys",
    [
        {"trained_weights": "bf16"},
        {"trained_weights": "bf16", "rounding": "kahan"},
        {"optimizer_on_cpu": True},
    ],
)
def test_state_is_read_as_it_was_written(kind: str, keys: dict[str, Any]) -> None:
    """Two steps, a checkpoint and two more are four steps, byte for byte."""
    dtype = BF16 if "trained_weights" in keys else torch.float32
    straight, resumed = weights(dtype), weights(dtype)
    one, two = tensorwise(kind, straight, **keys), tensorwise(kind, resumed, **keys)
    take_steps(one, straight, 1, 2, 3, 4)
    take_steps(two, resumed, 1, 2)
    again = tensorwise(kind, resumed, **keys)
    again.load_state_dict(two.state_dict())
    assert set(again.state) == set(resumed)
    take_steps(again, resumed, 3, 4)
    assert all(map(torch.equal, straight, resumed))


def test_rounding_keeps_the_mean_and_what_is_no_number() -> None:
    value = torch.full((20_000,), 1 + 2**-7 * 0.3)  # bf16 has 1 and 1 + 1/128
    rounded = stochastically_rounded(value, torch.Generator().manual_seed(0)).float()
    assert rounded.unique().tolist() == [1.0, 1 + 2**-7]
    share = float((rounded > 1).float().mean())
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 20_000))
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32)  # NaN of CUDA and others
    special = torch.cat([bits.view(torch.float32), torch.tensor([math.inf, -math.inf, 0.0, -1.5])])
    found = stochastically_rounded(special, torch.Generator().manual_seed(1))
    assert found[:3].isnan().all()
    assert found[3:].tolist() == [math.inf, -math.inf, 0.0, -1.5]


def test_draws_depend_on_seed_step_and_tensor() -> None:
    ends = []
    for seed, step in ((3, 1), (3, 1), (4, 1), (3, 2)):
        parameters = weights(BF16)
        taken = tensorwise("adamw", parameters, trained_weights="bf16")
        taken.seed, taken.step_number = seed, step
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        taken.step()
        ends.append(parameters[0])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], ends[3])


@pytest.mark.parametrize(
    ("rounding", "expected"), [("nearest", 0.0), ("stochastic", 0.02), ("kahan", 0.02)]
)
def test_updates_below_the_precision_of_the_weights(rounding: Any, expected: float) -> None:
    """20 steps of 0.001 down from 1, where bf16's next number is 0.996: nearest does not move."""
    weight = torch.ones(4096, dtype=BF16)
    taken = tensorwise("torch.optim:SGD", [weight], 1e-3, trained_weights="bf16", rounding=rounding)
    for step in range(1, 21):
        taken.step_number = step
        weight.grad = torch.ones_like(weight)
        taken.step()
    assert 1 - float(weight.float().mean()) == pytest.approx(expected, abs=5e-4)


def test_optimizers_that_look_at_all_tensors_together() -> None:
    class Together(torch.optim.SGD):
        """Divides by the norm of all gradients, kept in its group."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1
                group["lr"] = 0.1 / group["steps"]
            super().step(closure)

    from train.config.optimization import OPTIMIZERS

    OPTIMIZERS["together"] = Together
    try:
        with pytest.raises(InputError, match=r"^optimizer\.type: together computes its step from"):
            check_steps_alone(OptimizerConfig(type="together"))
    finally:
        del OPTIMIZERS["together"]


@pytest.mark.parametrize("kind", [*KINDS, "torch.optim:SGD"])
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_bytes_of_bf16_state_are_those_after_a_step(kind: str, rounding: Any) -> None:
    parameters = weights(BF16)
    taken = tensorwise(kind, parameters, trained_weights="bf16", rounding=rounding)
    take_steps(taken, parameters, 1)
    shared = ("qmap1", "qmap2")  # bitsandbytes' tables are those of all tensors
    kept = [one for state in taken.state.values() for one in state.items() if one[0] not in shared]
    measured = sum(one.nbytes for _, one in kept if isinstance(one, Tensor) and one.ndim)
    steps = sum(one.nbytes for _, one in kept if isinstance(one, Tensor) and not one.ndim)
    reckoned = state_bytes(OptimizerConfig(type=kind), parameters, taken.config)
    assert measured <= reckoned <= measured + steps


def test_bytes_of_the_levers() -> None:
    """By hand for 5,127 numbers, the largest tensor with 5,120."""
    from types import SimpleNamespace

    def found(**keys: Any) -> Any:
        recipe: Any = SimpleNamespace(
            memory=TrainMemoryConfig(**keys), optimizer=OptimizerConfig(), ema=object()
        )
        dtype = BF16 if "trained_weights" in keys else torch.float32
        return trained_bytes(recipe, weights(dtype))

    plain = found()
    assert (plain.gradients, plain.optimizer, plain.ema) == (4 * 5127, 8 * 5127, 4 * 5127)
    assert (plain.step, plain.host) == (0, 0)
    fused = found(fused_backward=True)
    assert (fused.gradients, fused.step) == (4 * 5120, 0)
    half = found(trained_weights="bf16", fused_backward=True)
    assert (half.gradients, half.optimizer, half.ema) == (2 * 5120, 4 * 5127, 4 * 5127)
    assert half.step == (8 + 4 + 9) * 5120
    away = found(optimizer_on_cpu=True, ema_on_cpu=True)
    assert (away.optimizer, away.ema, away.step) == (0, 0, 0)
    assert away.host == 12 * 5127 + 8 * 5120
