"""Packed layers in models: which they are, what they compute, and how their weights change."""

from __future__ import annotations

import logging
import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from inference.config.models import BaseModelConfig
from inference.memory.fp8 import ScaledLayer
from inference.memory.measuring import live_bytes, on_meta
from inference.memory.quantization import (
    Packing,
    is_packed,
    packed,
    packed_bytes,
    packed_layers,
    plain_shape,
    plain_weight,
    repack,
    restorer,
    unpacked_layer,
)
from inference.models.base import DiffusionModel, quantization_savings, quantize_denoiser
from inference.models.families import skeleton
from inference.runtime.errors import BaseModelError
from tests.inference.artifacts.video_base import build_video_base
from tests.toy_family.family import new_toy_flow

KINDS: tuple[Packing, ...] = get_args(Packing)
NAMED = get_args(get_args(BaseModelConfig.__annotations__["quantization"])[0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int = 64, outputs: int = 48) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def run(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    output = layer(x)
    output.backward(random(*output.shape, seed=2).to(output.dtype))
    assert x.grad is not None
    return output.detach(), x.grad


def off(value: Tensor, expected: Tensor) -> float:
    """The relative error."""
    return float((value.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_measured_without_values(kind: Packing) -> None:
    """What is computed on the meta device has the output's shape and takes at least its memory."""
    layer: Any = packed(linear(), kind, torch.bfloat16)
    with on_meta(layer), live_bytes() as (live, _):
        output = layer(torch.zeros(2, 40, 64, device="meta", dtype=torch.bfloat16))
        assert output.is_meta and output.shape == (2, 40, 48) and output.dtype == torch.bfloat16
    assert live.peak >= output.nbytes + 2 * 40 * 64 * 2


ERRORS = {"fp8": 0.035, "int8": 0.02, "nf4": 0.13}
"""Of a layer's output and of the gradient of its input, relative, for normal weights and inputs.
Measured: 0.026, 0.012 (outputs) and 0.006 (gradients), 0.097."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer(kind: Packing, dtype: torch.dtype) -> None:
    plain = linear()
    layer: Any = packed(plain, kind, dtype)
    assert isinstance(layer, nn.Linear) and is_packed(layer.weight) and not layer.training
    assert plain_shape(layer) == (48, 64) == plain_weight(layer).shape
    assert layer.bias.dtype == plain_weight(layer).dtype == layer.compute_dtype == dtype
    assert packed_bytes(plain, kind) == pytest.approx(held(layer), rel=0.06)  # nf4's last block
    x = random(3, 7, 64, seed=1).to(dtype)
    for ours, theirs in zip(run(layer, x), run(plain.to(dtype), x), strict=True):
        assert ours.dtype == dtype
        assert 1e-4 < off(ours, theirs) < ERRORS[kind]
    # The gradient is that of the weight that it computes with.
    mirror = unpacked_layer(layer)
    assert type(mirror) is nn.Linear and unpacked_layer(mirror) is mirror
    assert off(run(layer, x)[1], run(mirror, x)[1]) < (1e-6 if dtype == torch.float32 else 1e-2)


def held(layer: Any) -> int:
    """The bytes that a packed layer holds in place of its weight."""
    if isinstance(layer, ScaledLayer):
        return layer.weight.nbytes + layer.weight_scale.nbytes
    state = layer.weight.quant_state
    tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return layer.weight.nbytes + sum(one.nbytes for one in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_decides_on_the_dtype_as_for_plain_layers(kind: Packing) -> None:
    layer, x = packed(linear(), kind, torch.bfloat16), random(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), layer(x.bfloat16()))


def test_int8_is_that_of_bitsandbytes() -> None:
    """Bit for bit, with inputs above the threshold too, and without a word in every pass."""
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    plain = linear()
    theirs: Any = Linear8bitLt(64, 48, has_fp16_weights=False, threshold=6.0, device="meta")
    weight: Any = Int8Params(plain.weight.data, requires_grad=False)
    theirs.weight = weight.to("cpu")
    theirs.bias = plain.bias
    x = random(2, 9, 64)
    x[..., 5] += 7
    ours = packed(plain, "int8", torch.float32)
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    logging.getLogger("bitsandbytes").addHandler(handler)
    found = run(ours, x)
    logging.getLogger("bitsandbytes").removeHandler(handler)
    assert lines == []
    for one, other in zip(found, run(theirs.eval(), x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_change_no_weight(kind: Packing) -> None:
    """On CPUs with AVX512's bf16, bitsandbytes rounds NF4's scales in a pass without gradients."""
    layer, x = packed(linear(64, 64), kind, torch.float32), random(4, 64)
    before, expected = plain_weight(layer), run(layer, x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected[0])
    assert torch.equal(plain_weight(layer), before)
    assert all(map(torch.equal, run(layer, x), expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_replaced_and_restored(kind: Packing) -> None:
    layer: Any = packed(linear(), kind, torch.float32)
    x, weight = random(4, 64), random(48, 64, seed=5)
    before = layer(x)
    restore = restorer(layer)
    repack(layer, weight)
    assert torch.equal(layer(x), packed(plain_with(weight, layer.bias), kind, torch.float32)(x))
    assert 0 < off(plain_weight(layer), weight) < ERRORS[kind]
    layer._apply(torch.clone)  # as .to(another device)
    restore()
    assert torch.equal(layer(x), before)


def plain_with(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def test_without_bitsandbytes_fp8_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert is_packed(packed(linear(), "fp8", torch.float32).weight)  # type: ignore[arg-type]
    for kind in ("int8", "nf4"):
        with pytest.raises(BaseModelError, match=f"{kind} needs bitsandbytes, .* fp8 does not"):
            packed(linear(), kind, torch.float32)


# Which layers

MODELS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "cogvideox-5b": "THUDM/CogVideoX-5b",
}
SHARES = {  # of the weights: fp8, int8 and nf4
    "sd15": (0.877, 0.282),
    "sdxl": (0.971, 0.851),
    "cogvideox-5b": (0.854, 0.854),
}
NEVER = ("norm", "time_emb", "add_emb", "patch_embed", "conv_in", "conv_out", "proj_out", "proj_in")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one != "sd15")) for one in MODELS]
)
def test_packed_layers_of_published_models(name: str) -> None:
    """Their share of the weights, as docs/base_models.md states it, and what the plan saves."""
    base: Any = skeleton(BaseModelConfig(path=MODELS[name]), "fp32")
    count = sum(p.numel() for p in base.denoiser.parameters())
    for kind in KINDS:
        layers: dict[str, Any] = dict(base.packable.layers(base.denoiser, kind))
        assert not [path for path in layers if any(word in path for word in NEVER)]
        weights = sum(layer.weight.numel() for layer in layers.values())
        assert weights / count == pytest.approx(SHARES[name][kind != "fp8"], abs=1e-3)
        saved = quantization_savings(base, kind)
        bits = {"fp8": 8, "int8": 8, "nf4": 4.127}[kind]
        assert saved == pytest.approx(weights * (4 - bits / 8), rel=5e-3)


@pytest.mark.parametrize("name", ["tiny_base", "tiny_sdxl", "video", "toy"])
def test_text_encoders_and_vae_stay_plain(name: str, request: pytest.FixtureRequest) -> None:
    made = {"video": build_video_base, "toy": new_toy_flow}
    base: Any = made[name]() if name in made else request.getfixturevalue(name)
    for kind in KINDS[:1] if name != "toy" else KINDS:
        expected = {path for path, _ in base.packable.layers(base.denoiser, kind)}
        if kind == KINDS[0]:
            quantize_denoiser(base, kind, torch.float32)
            assert {*packed_layers(base.denoiser)} == expected
        assert expected
    others = [part for part in base.parts if part != base.denoiser_name]
    assert others and not any(packed_layers(base.parts[part]) for part in others)


def test_a_family_that_names_no_layers_is_not_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    base = new_toy_flow("plain")
    monkeypatch.setattr(type(base), "packable", DiffusionModel.packable)
    with pytest.raises(BaseModelError, match="packs no layer of 'plain'"):
        quantize_denoiser(base, "fp8", torch.float32)


def test_the_recipe_names_every_kind() -> None:
    assert KINDS == NAMED
