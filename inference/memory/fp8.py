"""Layers whose weights are 8-bit floats, e4m3 (Micikevicius et al. 2022, arXiv 2209.05433).

Each output channel has a scale in fp32, by which its largest weight becomes the largest number of
e4m3, 448. The layers compute in a wider dtype, with weights that exist only while they work: the
backward pass unpacks them again. No kernels besides PyTorch's are needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (out, …) in e4m3, and the scales (out,) by which it is multiplied, fp32.

    A number of at least 2^-6 scales has a relative error of at most 2^-4, a smaller one an absolute
    error of at most 2^-10 scales.
    """
    values = weight.float()
    scales = values.abs().flatten(1).amax(1) / LARGEST
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)  # of a channel without weights
    # e4m3fn rounds what lies above 464 to NaN, and a quotient may exceed 448 by its last bit.
    scaled = (values / along(scales, values)).clamp(-LARGEST, LARGEST)
    return scaled.to(FORMAT), scales


def unpack(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in a dtype, rounded once: e4m3 is exact in it, and products are fp32."""
    return packed.to(dtype).mul_(along(scales, packed))


def along(scales: Tensor, weight: Tensor) -> Tensor:
    """Return the scales (out,) in a shape that multiplies the weight (out, …)."""
    return scales.reshape(-1, *(1 for _ in weight.shape[1:]))


def dtype_at_work(x: Tensor, own: torch.dtype) -> torch.dtype:
    """Return the dtype that a layer computes in: under autocast that of autocast."""
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else own


class ScaledLayer(nn.Module, ABC):
    """A frozen layer whose weight is multiplied by a scale for each output channel.

    `weight` keeps its name and shape.
    """

    weight_scale: Tensor
    """(out,), fp32."""
    compute_dtype: torch.dtype
    """Dtype that it computes in, without autocast."""

    @staticmethod
    @abstractmethod
    def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return a plain weight packed, and its scales (out,) in fp32."""

    @abstractmethod
    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in a dtype."""

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Return the output in the dtype that it computes in."""

    def take_over(self, layer: Any, dtype: torch.dtype) -> None:
        """Take the weights of another layer, rounded to the dtype that they compute in first."""
        self.compute_dtype = dtype
        self.register_buffer("weight_scale", None)
        self.repack(layer.weight.detach().to(dtype))
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        self.requires_grad_(False).eval()

    def repack(self, weight: Tensor) -> None:
        """Replace the weight."""
        packed, self.weight_scale = self.packed(weight)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the layer. A conversion to another dtype leaves weight and scales as they are."""
        weight: Any = self.weight
        kind, weight.data = weight.dtype, weight.data.view(torch.uint8)
        self.weight_scale = self.weight_scale.view(torch.int32)
        super()._apply(fn, recurse)
        self.weight.data = self.weight.data.view(kind)
        self.weight_scale = self.weight_scale.view(torch.float32)
        return self


class Fp8Layer(ScaledLayer):
    """What both kinds of layers in e4m3 share."""

    @staticmethod
    def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
        return pack(weight)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return unpack(self.weight, self.weight_scale, dtype)


@final
class Fp8Linear(Fp8Layer, nn.Linear):
    """A frozen linear layer."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        nn.Linear.__init__(self, *sizes, device="meta")
        self.take_over(layer, dtype)

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(dtype_at_work(input, self.compute_dtype))
        return _Linear.apply(x, self.weight, self.weight_scale, self.bias)  # type: ignore


@final
class Fp8Conv2d(Fp8Layer, nn.Conv2d):
    """A frozen convolution."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        nn.Conv2d.__init__(self, **geometry(layer), device="meta")
        self.take_over(layer, dtype)

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":  # in seamless images, for a while
            input = functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = (0, 0)
        x = input.to(dtype_at_work(input, self.compute_dtype))
        how = self.stride, padding, self.dilation, self.groups
        return _Convolution.apply(x, self.weight, self.weight_scale, self.bias, how)  # type: ignore


def geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments that a convolution was made with."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    names = (*names, "groups", "padding_mode")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


class _Linear(torch.autograd.Function):
    """A linear layer with a gradient for its input, which keeps nothing but packed weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(packed, scales)
        return functional.linear(x, unpack(packed, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        packed, scales = ctx.saved_tensors
        (gradient,) = grad_outputs
        return gradient @ unpack(packed, scales, gradient.dtype), None, None, None


class _Convolution(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, how: Any
    ) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.shape, ctx.how = x.shape, how
        return functional.conv2d(x, unpack(packed, scales, x.dtype), bias, *how)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        packed, scales = ctx.saved_tensors
        (gradient,) = grad_outputs
        weight = unpack(packed, scales, gradient.dtype)
        change = conv2d_input(ctx.shape, weight, gradient, *ctx.how)
        return change, None, None, None, None
