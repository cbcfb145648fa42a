"""Pack the weights of frozen layers: into 8-bit floats, or by bitsandbytes into 8 or 4 bits.

LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) and NF4 (QLoRA, Dettmers et al. 2023, arXiv
2305.14314). Layers keep their names and are still `nn.Linear` or `nn.Conv2d`, so that LoRAs and
hooks attach to them. Gradients flow through them to their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from inference.memory.fp8 import (
    FORMAT,
    Fp8Conv2d,
    Fp8Linear,
    ScaledLayer,
    dtype_at_work,
    geometry,
)
from inference.runtime import BaseModelError

Packing = Literal["fp8", "int8", "nf4"]

BITS: dict[Packing, float] = {"fp8": 8.0, "int8": 8.0, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}
"""Bits per weight. NF4: 4, and for each 64 of them a scale, itself in 8 bits (double quantization),
and for 256 of those one in 32. The others have a scale in fp32 for each output besides."""

NF4_TABLES = 4 * (16 + 256 + 1)
"""Bytes that a layer in NF4 takes besides: the values of both codes, and the mean of the scales."""

PACKED_DTYPES = (FORMAT, torch.int8, torch.uint8)


OUTLIER = 6.0
"""Inputs from which on LLM.int8() multiplies in the layer's own dtype."""


@dataclass(frozen=True)
class Packable:
    """The layers of a network whose weights can be packed, by parts of their paths.

    A family leaves out what is small and loses most accuracy: norms, embeddings of time, position
    and labels, modulation by them (AdaLN), the first and the last layer.
    """

    linear: tuple[str, ...] = ()
    """Of linear layers, such as `.attn1.`; a path begins and ends with a dot here."""
    convolutions: tuple[str, ...] = ()
    """Of convolutions, which only fp8 packs."""

    def layers(self, network: nn.Module, kind: Packing) -> Iterator[tuple[str, nn.Module]]:
        """Yield path and layer of all that a kind packs; under a LoRA the original layer."""
        for path, layer in network.named_modules():
            if ".lora_" in path:
                continue
            inside = self.linear
            if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
                inside = self.convolutions if kind == "fp8" else ()
            elif not isinstance(layer, nn.Linear):
                continue
            if any(part in f".{path}." for part in inside):
                yield path, layer


def quantize(network: nn.Module, kind: Packing, dtype: torch.dtype, paths: Iterable[str]) -> None:
    """Replace layers of a network by packed ones, on the CPU.

    Their weights are first rounded to the dtype that they compute in, so that training and
    inference see the same values, whatever dtype they were loaded in.

    Args:
        network: with plain weights on the CPU.
        kind: how they are packed.
        dtype: dtype that the layers compute in.
        paths: of the layers.

    Raises:
        BaseModelError: bitsandbytes cannot be imported.
    """
    for path in paths:
        parent, _, name = path.rpartition(".")
        layer = network.get_submodule(path)
        setattr(network.get_submodule(parent), name, packed(layer, kind, dtype))


def packed(layer: Any, kind: Packing, dtype: torch.dtype) -> nn.Module:
    """Return a frozen copy of a layer with packed weights.

    Raises:
        BaseModelError: bitsandbytes cannot be imported.
    """
    if kind == "fp8":
        is_convolution = isinstance(layer, nn.Conv2d)
        return Fp8Conv2d(layer, dtype) if is_convolution else Fp8Linear(layer, dtype)
    try:
        import_module("bitsandbytes")
    except ImportError as error:
        raise BaseModelError(
            f"base_model.quantization: {kind} needs bitsandbytes, which cannot be imported: "
            f"{error}; fp8 does not"
        ) from error
    return Int8Linear(layer, dtype) if kind == "int8" else nf4_class()(layer, dtype)


@final
class Int8Linear(ScaledLayer, nn.Linear):
    """A frozen linear layer that multiplies in 8 bits, but for inputs of 6 and above: LLM.int8().

    As `bitsandbytes.nn.Linear8bitLt`, which keeps its inputs for the backward pass where gradient
    checkpointing cannot reach them, and logs a line in each pass that is not in fp16.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        nn.Linear.__init__(self, *sizes, device="meta")
        self.take_over(layer, dtype)

    @staticmethod
    def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import int8_vectorwise_quant

        packed, scales, _ = int8_vectorwise_quant(weight.to(torch.float16, copy=True))
        return packed, scales

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return unpacked_int8(self.weight, self.weight_scale, dtype)

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(dtype_at_work(input, self.compute_dtype))
        return _Int8.apply(x, self.weight, self.weight_scale, self.bias)  # type: ignore


def unpacked_int8(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in a dtype; its largest number, 127, is the scale."""
    return packed.to(dtype).mul_(scales.unsqueeze(1).mul(1 / 127))


class _Int8(torch.autograd.Function):
    """The product, with a gradient for its input, which keeps nothing but packed weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_quant

        ctx.save_for_backward(packed, scales)
        flat = x.flatten(0, -2)
        # A copy: outliers are put aside in it for a moment.
        rows, row_scales, outliers = int8_vectorwise_quant(
            flat.to(torch.float16, copy=True), threshold=0.0 if flat.is_meta else OUTLIER
        )
        if flat.is_meta:  # there are no values to count outliers among
            product = flat.new_empty(len(flat), len(packed), dtype=torch.int32)  # as on CUDA
            half = torch.empty_like(product, dtype=torch.float16)
            return half.to(x.dtype).unflatten(0, x.shape[:-1])
        bias = bias if bias is None else bias.to(x.dtype)
        multiplied, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            flat, rows, packed, row_scales, scales, outliers, bias
        )
        return multiplied.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (gradient,) = grad_outputs
        packed, scales = ctx.saved_tensors
        return gradient @ unpacked_int8(packed, scales, gradient.dtype), None, None, None


@cache
def nf4_class() -> Any:
    """Return bitsandbytes' layer of NF4 as a class whose instances compute as `nn.Linear` does.

    Under autocast that is in its dtype, and not in that of the input.
    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    class Nf4Linear(Linear4bit):
        def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
            sizes = layer.in_features, layer.out_features, layer.bias is not None
            options: dict[str, Any] = {"compute_dtype": dtype, "quant_type": "nf4"}
            super().__init__(*sizes, device="meta", **options)
            # Otherwise a pass without gradients rounds the weights in place, on CPUs with AVX512's
            # bf16, and later passes with gradients use these too.
            self.support_avx512bf16_for_cpu = False
            if layer.bias is not None:
                self.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
            self.repack(layer.weight.detach().to(dtype))
            self.requires_grad_(False).eval()

        def repack(self, weight: Tensor) -> None:
            options: dict[str, Any] = {"requires_grad": False, "quant_type": "nf4", "module": self}
            fresh: Any = Params4bit(weight.contiguous(), **options)
            self.weight: Any = fresh.to("cpu")
            self.quant_state = self.weight.quant_state

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(dtype_at_work(x, self.compute_dtype or x.dtype)))

    return Nf4Linear


def is_packed(weight: Tensor) -> bool:
    """Return whether a layer's weight is packed: it has another dtype than its values."""
    return weight.dtype in PACKED_DTYPES


def packed_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers with packed weights by their paths."""
    return {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and is_packed(layer.weight)
    }


def plain_weight(layer: Any) -> Tensor:
    """Return the weight that a layer computes with: its own, or if it is packed, unpacked."""
    if isinstance(layer, ScaledLayer):
        return layer.unpacked(layer.compute_dtype)
    if not is_packed(layer.weight):
        return layer.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)


def unpacked_layer(layer: Any) -> Any:
    """Return a packed layer as a plain one; others as they are."""
    if not is_packed(layer.weight):
        return layer
    if isinstance(layer, nn.Conv2d):
        made: Any = nn.Conv2d(**geometry(layer), device="meta")
    else:
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        made = nn.Linear(*sizes, device="meta")
    made.weight, made.bias = nn.Parameter(plain_weight(layer), requires_grad=False), layer.bias
    return made.eval()


def plain_shape(layer: Any) -> tuple[int, ...]:
    """Return the shape of `plain_weight`."""
    is_linear = isinstance(layer, nn.Linear)
    return (layer.out_features, layer.in_features) if is_linear else tuple(layer.weight.shape)


def repack(layer: Any, weight: Tensor) -> None:
    """Replace the weight of a packed layer by a plain one, packed in the same way.

    It is packed on the CPU, as when a model is loaded: kernels of GPUs may round otherwise.
    """
    device = layer.weight.device
    layer.repack(weight.to("cpu", layer.compute_dtype))
    layer.to(device)


def restorer(layer: Any) -> Callable[[], None]:
    """Return a function that restores the packed weight of a layer, bit for bit."""
    name = "weight_scale" if isinstance(layer, ScaledLayer) else "quant_state"
    weight, scales = layer.weight, getattr(layer, name)

    def restore() -> None:
        device = layer.weight.device
        layer.weight = weight
        setattr(layer, name, scales)
        layer.to(device)

    return restore


def packed_bytes(layer: Any, kind: Packing) -> int:
    """Return the bytes of a layer's weight once it is packed."""
    scales = NF4_TABLES if kind == "nf4" else 4 * layer.weight.shape[0]
    return round(layer.weight.numel() * BITS[kind] / 8) + scales
