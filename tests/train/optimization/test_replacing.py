"""Weights that stand in for others for a while."""

import pytest
import torch
from torch import nn

from train.common.weights import replaced_parameters


@pytest.fixture
def module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"a": nn.Linear(3, 1, bias=False)}))


def test_values_of_another_format_stand_in(module: nn.Module) -> None:
    kept = dict(module.named_parameters())
    before = {name: value.detach().clone() for name, value in kept.items()}
    values = [torch.full_like(value, 7, dtype=torch.bfloat16) for value in before.values()]
    with replaced_parameters([module], [*kept.values()], values):
        for name, value in module.named_parameters():
            assert value.dtype == torch.bfloat16
            assert value.unique().tolist() == [7]
            assert value is not kept[name]
        assert [*module.state_dict()] == [*kept]
    for name, value in module.named_parameters():
        assert value is kept[name]
        assert torch.equal(value, before[name])


def test_every_holder_gets_the_same_value(module: nn.Module) -> None:
    """Also one that holds a few of the parameters under names of its own; others stay."""
    bias = module.get_parameter("0.bias")
    holder = nn.ParameterDict({"mine": bias})
    with replaced_parameters([holder, module], [bias], [torch.ones(3)]):
        assert holder["mine"] is module.get_parameter("0.bias")
        assert holder["mine"].tolist() == [1, 1, 1]
        assert module.get_parameter("0.weight").requires_grad
    assert holder["mine"] is module.get_parameter("0.bias") is bias


def test_hooks_of_ddp_stay_in_place(module: nn.Module) -> None:
    """They hang on the node that accumulates a gradient, as here."""
    weight = module.get_parameter("0.weight")
    function = weight.view_as(weight).grad_fn
    assert function is not None
    accumulator = function.next_functions[0][0]
    assert accumulator is not None
    calls = []
    accumulator.register_hook(lambda *_: calls.append(1))
    with replaced_parameters([module], [weight], [weight.bfloat16()]):
        pass
    (weight * 2).sum().backward()
    assert calls == [1]


def test_parameters_come_back_after_an_error(module: nn.Module) -> None:
    kept = [*module.parameters()]
    zeros = [value * 0 for value in kept]
    with (
        pytest.raises(ValueError, match="shorter"),
        replaced_parameters([module], kept, zeros[:1]),
    ):
        raise AssertionError("never reached")
    assert all(now is before for now, before in zip(module.parameters(), kept, strict=True))
    with pytest.raises(RuntimeError, match="inside"), replaced_parameters([module], kept, zeros):
        assert not any(bool(now.any()) for now in module.parameters())
        raise RuntimeError("inside")
    assert any(bool(now.any()) for now in module.parameters())
    assert all(now is before for now, before in zip(module.parameters(), kept, strict=True))
