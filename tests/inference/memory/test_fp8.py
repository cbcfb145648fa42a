"""Weights as 8-bit floats: their values, and layers that compute with them as plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from inference.memory.fp8 import Fp8Conv2d, Fp8Linear, pack, unpack


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_known_beforehand():
    """4 significant bits: 1 + 1/8 is kept, 1 + 1/16 rounded to even, as is 1 + 3/16."""
    weight = torch.tensor([[448.0, 1.125, 1.0625, 1.1875], [-0.4375, 2**-10, 0.0, 1e-7]])
    packed, scales = pack(weight)
    assert scales.tolist() == [1.0, 2**-10]
    assert packed.dtype == torch.float8_e4m3fn
    expected = [[448.0, 1.125, 1.0, 1.25], [-0.4375, 2**-10, 0.0, 0.0]]
    assert unpack(packed, scales, torch.float32).tolist() == expected


@pytest.mark.parametrize("shape", [(64, 96), (32, 16, 3, 3)])
def test_errors_of_each_channel(shape):
    """At most 2^-4 of a number, however unlike the channels are; the largest of each is exact."""
    weight = random(*shape) * torch.logspace(-7, 3, shape[0]).view(-1, *(1,) * (len(shape) - 1))
    weight[3] = 0
    packed, scales = pack(weight)
    values = unpack(packed, scales, torch.float32)
    steps = scales.view(-1, *(1,) * (len(shape) - 1))
    error = (values - weight).abs()
    assert (error <= torch.maximum(weight.abs() * 2**-4, steps * 2**-10) * (1 + 1e-6)).all()
    assert not values[3].any()
    largest = packed.float().abs().flatten(1).amax(1)
    assert (largest == torch.where(scales > 1e-30, 448.0, 0.0)).all()
    assert torch.allclose(values.abs().flatten(1).amax(1), weight.abs().flatten(1).amax(1))
    # What the scales are for: without them small channels vanish.
    assert not weight[0].to(torch.float8_e4m3fn).any() and values[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unpacked_weights_are_rounded_once(dtype):
    """Also where a scale is too small for the dtype."""
    packed, scales = pack(random(8, 16) * torch.logspace(-6, 2, 8)[:, None])
    exact = packed.double() * scales.double()[:, None]
    assert torch.equal(unpack(packed, scales, dtype), exact.float().to(dtype))


LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (2, 5, 12)),
    "without bias": (lambda: nn.Linear(12, 20, bias=False), (7, 12)),
    "convolution": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 8)),
    "strides and groups": (lambda: nn.Conv2d(6, 9, (3, 2), 2, (1, 0), groups=3), (2, 6, 9, 8)),
    "1x1": (lambda: nn.Conv2d(6, 8, 1, bias=False), (2, 6, 4, 4)),
    "seamless": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (2, 6, 5, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_plain_one_with_the_unpacked_weight(name, dtype):
    """The same output and the same gradient for the input, bit for bit."""
    make: Any
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = make().requires_grad_(False)
    is_linear = isinstance(plain, nn.Linear)
    layer = Fp8Linear(plain, dtype) if is_linear else Fp8Conv2d(plain, dtype)
    assert isinstance(layer, type(plain)) and not layer.training
    assert layer.weight.shape == plain.weight.shape
    assert set(layer.state_dict()) - {"weight_scale"} == set(plain.state_dict())
    plain.to(dtype).weight.data = layer.unpacked(dtype)

    def run(one: nn.Module, autocast: bool) -> tuple[Tensor, Tensor]:
        x = random(*shape, seed=1).to(torch.float32 if autocast else dtype).requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = one(x)
        output.backward(random(*output.shape, seed=2).to(output.dtype))
        assert x.grad is not None
        return output, x.grad

    for autocast in {False, dtype == torch.bfloat16}:
        for ours, theirs in zip(run(layer, autocast), run(plain, autocast), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_nothing_but_packed_weights_is_kept_for_the_backward_pass():
    torch.manual_seed(0)
    layers = (
        Fp8Linear(nn.Linear(32, 32), torch.float32),
        Fp8Conv2d(nn.Conv2d(4, 4, 3), torch.float32),
    )
    for layer, shape in zip(layers, ((5, 32), (1, 4, 5, 5)), strict=True):
        kept: list[Tensor] = []

        def keep(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(random(*shape).requires_grad_(True))
        own = {layer.weight.data_ptr(), layer.weight_scale.data_ptr()}
        assert {tensor.data_ptr() for tensor in kept} == own


@pytest.mark.parametrize(
    "change", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), nn.Module.float]
)
def test_a_conversion_leaves_the_packed_weight_as_it_is(change):
    layer = Fp8Linear(nn.Linear(6, 5), torch.float32)
    before = layer.unpacked(torch.float32)
    change(layer)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.weight_scale.dtype == torch.float32
    assert torch.equal(layer.unpacked(torch.float32), before)
    assert layer.to("meta").weight.is_meta and layer.weight_scale.is_meta
