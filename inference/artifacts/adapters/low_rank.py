"""Low-rank layers (Hu et al. 2021, arXiv 2106.09685), injected with peft's layers.

A layer's output becomes `W x + sum over LoRAs of strength * alpha / rank * B A dropout(x)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import Conv2d, Linear, LoraLayer
from torch import Tensor, nn

from inference.artifacts.adapters.base import Adapter, adapter, working_dtype
from inference.runtime import ArtifactError


@adapter("lora")
class LowRank(Adapter):
    """The trained part of one layer: `lora_A` (rank, in), `lora_B` (out, rank), and dropout.

    For convolutions (rank, in, kh, kw) and (out, rank, 1, 1).
    """

    suffixes = ("lora_down.weight", "lora_up.weight")
    network_module = "networks.lora"

    def __init__(self, down: Tensor, up: Tensor, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(alpha, dropout)
        self.lora_A = _layer(down)
        self.lora_B = _layer(up)

    @classmethod
    def create(
        cls, target: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> LowRank:
        """Return `initial_low_rank`."""
        return initial_low_rank(target, rank, alpha, dropout, generator)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> LowRank:
        """Return the adapter with both halves; without alpha its scale is 1."""
        halves = [tensors.get(suffix) for suffix in cls.suffixes]
        for half, word in zip(halves, ("down", "up"), strict=True):
            if half is None:
                raise ArtifactError(f"the {word} half is missing")
        down, up = (half for half in halves if half is not None)
        if down.shape[0] != up.shape[1]:
            raise ArtifactError(
                f"rank {down.shape[0]} in the down half, {up.shape[1]} in the up half"
            )
        return cls(down, up, float(down.shape[0]) if alpha is None else alpha)

    def tensors(self) -> dict[str, Tensor]:
        """Return both halves."""
        weights = (self.lora_A.weight, self.lora_B.weight)
        return dict(zip(self.suffixes, weights, strict=True))

    def effect(self) -> Iterator[Tensor]:
        """Yield the scaled up half."""
        yield self.lora_B.weight * self.scaling

    def delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return strength * alpha / rank * B A, in fp32."""
        down, up = self.lora_A.weight.float(), self.lora_B.weight.float()
        change = (up.flatten(1) @ down.flatten(1)) * (strength * self.scaling)
        return change.reshape(weight.shape)

    def limited(self, rank: int) -> LowRank:
        """Return a copy of the first ranks."""
        return LowRank(
            self.lora_A.weight[:rank].detach(),
            self.lora_B.weight[:, :rank].detach(),
            self.alpha * min(rank, self.rank) / self.rank,
        )

    def drop_ranks(self) -> None:
        """Drop outputs of the down half, as `LoRAModule` of kohya's `networks/lora.py` does."""
        self.rank_dropout, self.dropout = self.dropout, nn.Identity()
        self.lora_A.register_forward_hook(lambda *call: self.rank_dropout(call[-1]))

    @property
    def input_width(self) -> int:
        """Return the width of the layer's input."""
        return self.lora_A.weight.shape[1]

    @property
    def rank(self) -> int:
        """Return the width of the bottleneck."""
        return self.lora_A.weight.shape[0]

    @property
    def scaling(self) -> float:
        """Return the factor of the trained change at strength 1."""
        return self.alpha / self.rank

    def check_fit(self, target: nn.Module, name: str) -> None:
        """Raise ArtifactError with `name` and both shapes if they are those of another layer."""
        down, up = self.lora_A.weight, self.lora_B.weight
        expected_down, expected_up = factor_shapes(target, self.rank)
        if not (_same(down, expected_down) and _same(up, expected_up)):
            raise ArtifactError(
                f"{name}: has shapes {_show(down.shape)} and {_show(up.shape)}, but this base "
                f"model's layer needs {_show(expected_down)} and {_show(expected_up)}"
            )

    def fitted(self, target: nn.Module) -> LowRank:
        """Return a copy for inference, with a layer's device, dtype and number of dimensions."""
        weight: Tensor = target.weight  # type: ignore[assignment]
        dtype = working_dtype(target)
        halves = (self.lora_A.weight.detach(), self.lora_B.weight.detach())
        down, up = (
            half.reshape(shape).to(weight.device, dtype, copy=True)
            for half, shape in zip(halves, factor_shapes(target, self.rank), strict=True)
        )
        copy = LowRank(down, up, self.alpha)
        if isinstance(target, nn.Conv2d):
            copy.lora_A.stride, copy.lora_A.padding = target.stride, target.padding  # type: ignore
        return copy.eval()


def initial_low_rank(
    target: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator
) -> LowRank:
    """Initialize as kohya and peft do, in fp32: A uniform within 1 / sqrt(fan in), B zero."""
    down_shape, up_shape = factor_shapes(target, rank)
    bound = 1 / math.sqrt(math.prod(down_shape[1:]))
    down = torch.empty(down_shape).uniform_(-bound, bound, generator=generator)
    low_rank = LowRank(down, torch.zeros(up_shape), alpha, dropout)
    if isinstance(target, nn.Conv2d):
        low_rank.lora_A.stride, low_rank.lora_A.padding = target.stride, target.padding  # type: ignore
    return low_rank.requires_grad_(True)


def factor_shapes(target: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of lora_A and lora_B for a layer; its weights may be packed (quantized)."""
    if isinstance(target, nn.Linear):
        return (rank, target.in_features), (target.out_features, rank)
    weight: Tensor = target.weight  # type: ignore[assignment]
    out, in_, *kernel = weight.shape
    return (rank, in_, *kernel), (out, rank, *(1 for _ in kernel))


def refuse_packed(target: nn.Module, path: str) -> None:
    """Raise ArtifactError if a layer's weights are quantized: nothing can be added to them."""
    weight: Tensor = target.weight  # type: ignore[assignment]
    if not weight.is_floating_point():
        raise ArtifactError(
            f"{path!r} is quantized: a LoRA can be attached to it, and not merged into it; load it "
            "without base_model.quantization"
        )


def _layer(weight: Tensor) -> nn.Linear | nn.Conv2d:
    """Return a layer with this very tensor as its weight, without drawing random numbers."""
    if weight.dim() == 2:
        layer = nn.Linear.__new__(nn.Linear)  # __init__ would fill it with random numbers
        nn.Module.__init__(layer)
        vars(layer).update(in_features=weight.shape[1], out_features=weight.shape[0])
        layer.register_parameter("bias", None)
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        return layer
    if weight.dim() == 4:
        kernel = (weight.shape[2], weight.shape[3])
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer
    raise ArtifactError(f"expected 2 or 4 dimensions, got shape {_show(weight.shape)}")


def _same(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether shapes match; a 1x1 convolution and a linear layer count as the same."""

    def core(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:2] if shape[2:] in ((), (1, 1)) else shape

    return core(tuple(tensor.shape)) == core(shape)


def _show(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


class _Stack(LoraLayer):
    """A peft layer whose LoRAs are injected from outside, each with its own strength.

    LoRAs at strength 0 are skipped. peft's own switches would also change which weights are
    trained, hence this property instead.
    """

    lora_others: nn.ModuleDict
    """Adapters other than LoRA, which peft's layers do not compute."""
    strengths: dict[str, float]
    """Their strengths."""

    @property
    def active_adapters(self) -> list[str]:
        return [name for name, scaling in self.scaling.items() if scaling]

    @property
    def is_empty(self) -> bool:
        return not self.lora_A and not self.lora_others

    def with_others(self, output: Tensor, x: Tensor) -> Tensor:
        """Return a layer's output plus that of the other adapters."""
        for name, strength in self.strengths.items():
            if strength:
                change = self.lora_others[name](x, self.get_base_layer(), strength)
                output = output + change
        return output

    def insert(self, name: str, low_rank: Adapter) -> None:
        if not isinstance(low_rank, LowRank):
            self.lora_others[name], self.strengths[name] = low_rank, 1.0
            return
        self.lora_A[name] = low_rank.lora_A
        self.lora_B[name] = low_rank.lora_B
        self.lora_dropout[name] = low_rank.dropout
        self.r[name], self.lora_alpha[name] = low_rank.rank, low_rank.alpha
        self.scaling[name] = low_rank.scaling
        self.lora_bias[name] = self.use_rslora[name] = self.use_dora[name] = False

    def set_strength(self, name: str, strength: float) -> None:
        if name in self.strengths:
            self.strengths[name] = strength
        else:
            self.set_scale(name, strength)

    def drop(self, name: str) -> None:
        if name in self.strengths:
            del self.lora_others[name], self.strengths[name]
            return
        for entries in (self.lora_A, self.lora_B, self.lora_dropout, self.r, self.lora_alpha):
            del entries[name]
        for entries in (self.scaling, self.lora_bias, self.use_rslora, self.use_dora):
            del entries[name]


class _LinearStack(_Stack, Linear):
    def __init__(self, base_layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self.lora_others, self.strengths = nn.ModuleDict(), {}
        self.fan_in_fan_out = False
        self.is_target_conv_1d_layer = False
        self.cast_input_dtype_enabled = False  # autocast casts it, or the dtypes are equal

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = Linear.forward(self, x, *args, **kwargs)
        return self.with_others(output, x)


class _ConvStack(_Stack, Conv2d):
    def __init__(self, base_layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self.lora_others, self.strengths = nn.ModuleDict(), {}
        self._kernel_dim = 4
        self.conv_fn = torch.nn.functional.conv2d
        self.cast_input_dtype_enabled = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = Conv2d.forward(self, x, *args, **kwargs)
        return self.with_others(output, x)


def hang_in(part: nn.Module, path: str, name: str, low_rank: Adapter) -> None:
    """Inject an adapter into the layer at `path`; the layer itself stays the same object."""
    layer = part.get_submodule(path)
    if not isinstance(layer, _Stack):
        layer = (_LinearStack if isinstance(layer, nn.Linear) else _ConvStack)(layer)  # type: ignore
        _replace(part, path, layer)
    layer.insert(name, low_rank)


def take_out(part: nn.Module, path: str, name: str) -> None:
    """Remove a LoRA; with the last one the original layer is restored."""
    layer = part.get_submodule(path)
    assert isinstance(layer, _Stack)
    layer.drop(name)
    if layer.is_empty:
        _replace(part, path, layer.get_base_layer())


def scale(part: nn.Module, path: str, name: str, strength: float) -> None:
    """Set the strength of a LoRA in the layer at `path`."""
    layer = part.get_submodule(path)
    assert isinstance(layer, _Stack)
    layer.set_strength(name, strength)


def set_alpha(part: nn.Module, path: str, name: str, alpha: float) -> None:
    """Set the alpha of a LoRA in the layer at `path`; `scale` applies it."""
    layer = part.get_submodule(path)
    assert isinstance(layer, _Stack)
    layer.lora_alpha[name] = alpha  # pyright: ignore[reportArgumentType]


def _replace(part: nn.Module, path: str, layer: nn.Module) -> None:
    """Replace a layer by another and move its input hooks (hypernetworks) along."""
    parent, _, child = path.rpartition(".")
    old = part.get_submodule(path)
    hooks = "_forward_pre_hooks"
    moved, kept = getattr(old, hooks), getattr(layer, hooks)
    setattr(layer, hooks, moved)  # the dict itself: its hooks' handles hold it
    setattr(old, hooks, kept)
    setattr(part.get_submodule(parent), child, layer)
