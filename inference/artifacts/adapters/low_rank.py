"""Low-rank layers (Hu et al. 2021, arXiv 2106.09685), injected with peft's layers.

A layer's output becomes `W x + sum over LoRAs of strength * alpha / rank * B A dropout(x)`. LoRAs
that are trained are modules of the layer; those of files are pairs of tensors, and many of them are
added as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from peft.tuners.lora.layer import Conv2d, Linear, LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from inference.artifacts.adapters.base import Adapter, adapter, working_dtype
from inference.runtime import ArtifactError

MANY = 16
"""From how many LoRAs of files at work in a layer on they are added as one. Their sum is rounded in
another order then."""


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
        self._rank = down.shape[0]

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
        return self._rank

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

    @property
    def is_trained(self) -> bool:
        """Return whether one of the halves gets gradients."""
        return self.lora_A.weight.requires_grad or self.lora_B.weight.requires_grad

    def halves(self, target: nn.Module) -> Halves:
        """Return copies for inference, with a layer's device, dtype and number of dimensions."""
        weight: Tensor = target.weight  # type: ignore[assignment]
        dtype = working_dtype(target)
        weights = (self.lora_A.weight.detach(), self.lora_B.weight.detach())
        down, up = (
            half.reshape(shape).to(weight.device, dtype, copy=True)
            for half, shape in zip(weights, factor_shapes(target, self.rank), strict=True)
        )
        return Halves(down, up)


class Halves(NamedTuple):
    """The halves of a low-rank layer that is not trained, in the shapes of its target."""

    down: Tensor
    up: Tensor


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


def _layer(weight: Tensor) -> nn.Linear | nn.Conv2d:
    """Return a layer with this very tensor as its weight, without drawing random numbers."""
    if weight.dim() == 2:
        layer = nn.Linear.__new__(nn.Linear)  # __init__ would fill it with random numbers
        nn.Module.__init__(layer)
        vars(layer).update(in_features=weight.shape[1], out_features=weight.shape[0])
        layer._parameters.update(bias=None, weight=nn.Parameter(weight, requires_grad=False))
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


class Stack(LoraLayer):
    """A peft layer whose LoRAs are injected from outside, each with its own strength.

    LoRAs at strength 0 are skipped. peft's own switches would also change which weights are
    trained, hence this property instead.
    """

    lora_others: nn.ModuleDict
    """Adapters other than LoRA, which peft's layers do not compute."""
    strengths: dict[str, float]
    """Their strengths."""
    halves: dict[str, Halves]
    """LoRAs that are not trained. Modules for them would take most of the time of loading them."""
    change: tuple[Tensor, ...] | None
    """The weights that `MANY` of these together amount to; None until they are needed."""

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self.lora_others, self.strengths = nn.ModuleDict(), {}
        self.halves, self.change = {}, None
        self.cast_input_dtype_enabled = False  # autocast casts it, or the dtypes are equal

    @property
    def active_adapters(self) -> list[str]:
        return [name for name, scaling in self.scaling.items() if scaling]

    @property
    def is_empty(self) -> bool:
        return not self.lora_A and not self.lora_others and not self.halves

    def added(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the base layer's output plus that of the LoRAs, in the order of their insertion.

        One by one as peft's layers do, except for `MANY` that are not trained.
        """
        dtype, active, target = output.dtype, self.active_adapters, self.get_base_layer()
        fixed = [name for name in active if name in self.halves]
        if len(fixed) >= MANY:
            if self.change is None:
                scaling = [self.scaling[name] for name in fixed]
                self.change = combined([self.halves[name] for name in fixed], scaling)
            output = output + through(target, x, self.change)
            active = [name for name in active if name not in self.halves]
        for name in active:
            if name in self.halves:
                change = through(target, x, self.halves[name])
            else:
                change = self.lora_B[name](self.lora_A[name](self.lora_dropout[name](x)))
            scaling = self.scaling[name]  # 1 as a rule: a product that changes nothing
            output = output + (change if scaling == 1.0 else change * scaling)
        return output.to(dtype)

    def with_others(self, output: Tensor, x: Tensor) -> Tensor:
        """Return a layer's output plus that of the other adapters."""
        for name, strength in self.strengths.items():
            if strength:
                change = self.lora_others[name](x, self.get_base_layer(), strength)
                output = output + change
        return output

    def insert(self, name: str, adapter: Adapter) -> None:
        """Add an adapter: one that is trained itself, otherwise a copy that fits the layer."""
        if not isinstance(adapter, LowRank):
            own = adapter if adapter.is_trained else adapter.fitted(self.get_base_layer())
            self.lora_others[name], self.strengths[name] = own, 1.0
            return
        if adapter.is_trained:
            self.lora_A[name] = adapter.lora_A
            self.lora_B[name] = adapter.lora_B
            self.lora_dropout[name] = adapter.dropout
        else:
            self.halves[name], self.change = adapter.halves(self.get_base_layer()), None
        self.r[name], self.lora_alpha[name] = adapter.rank, adapter.alpha
        self.scaling[name] = adapter.scaling

    def set_strength(self, name: str, strength: float) -> None:
        if name in self.strengths:
            self.strengths[name] = strength
        else:
            self.scaling[name] = strength * self.lora_alpha[name] / self.r[name]
            self.change = None

    def set_alpha(self, name: str, alpha: float) -> None:
        """Set the alpha of a LoRA; the next `set_strength` applies it."""
        self.lora_alpha[name] = alpha  # pyright: ignore[reportArgumentType]

    def drop(self, name: str) -> None:
        if name in self.strengths:
            del self.lora_others[name], self.strengths[name]
            return
        if name in self.halves:
            del self.halves[name]
            self.change = None
        else:
            del self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        del self.r[name], self.lora_alpha[name], self.scaling[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the halves along with the layer, or convert them, as PyTorch does its parameters."""
        self.halves = {name: Halves(*map(fn, each)) for name, each in self.halves.items()}
        self.change = None
        return super()._apply(fn, recurse)  # type: ignore[misc]


def combined(halves: Sequence[Halves], scaling: Sequence[float]) -> tuple[Tensor, ...]:
    """Return the scaled sum of low-rank layers: two halves, or a whole weight if smaller."""
    down = torch.cat([one.down for one in halves])
    ranks = torch.tensor([one.down.shape[0] for one in halves])
    factors = torch.tensor(scaling, dtype=torch.float32).repeat_interleave(ranks).to(down.device)
    up = torch.cat([one.up for one in halves], 1)
    scaled = up.flatten(1).float() * factors
    shape = (up.shape[0], *down.shape[1:])
    if down.numel() + up.numel() < math.prod(shape):
        return down, scaled.reshape(up.shape).to(up.dtype)
    return ((scaled @ down.flatten(1).float()).reshape(shape).to(up.dtype),)


def through(layer: nn.Module, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the output of weights that are applied one after the other in place of a layer's.

    The first are applied as the layer's own: with its strides, edges and, for tiling, padding.
    """
    first, *others = (weight.to(x.device) for weight in weights)  # elsewhere if it is offloaded
    if not isinstance(layer, nn.Conv2d):
        x = functional.linear(x, first)
        for weight in others:
            x = functional.linear(x, weight)
        return x
    x = layer._conv_forward(x, first, None)
    for weight in others:
        x = functional.conv2d(x, weight)
    return x


class _LinearStack(Stack, Linear):
    def __init__(self, base_layer: nn.Linear) -> None:
        Stack.__init__(self, base_layer)
        self.fan_in_fan_out = False
        self.is_target_conv_1d_layer = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = self.added(self.base_layer(x, *args, **kwargs), x)
        return self.with_others(output, x)


class _ConvStack(Stack, Conv2d):
    def __init__(self, base_layer: nn.Conv2d) -> None:
        Stack.__init__(self, base_layer)
        self._kernel_dim = 4
        self.conv_fn = functional.conv2d

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = self.added(self.base_layer(x, *args, **kwargs), x)
        return self.with_others(output, x)


def hang_in(part: nn.Module, path: str, name: str, adapter: Adapter) -> Stack:
    """Inject an adapter into the layer at `path`, which stays the same object; return its stack."""
    layer = part
    for child in path.split("."):
        layer = layer._modules[child]  # type: ignore[assignment] # get_submodule is slow
    if not isinstance(layer, Stack):
        layer = (_LinearStack if isinstance(layer, nn.Linear) else _ConvStack)(layer)  # type: ignore
        _replace(part, path, layer)
    layer.insert(name, adapter)
    return layer


def take_out(part: nn.Module, path: str, name: str, stack: Stack) -> None:
    """Remove a LoRA; with the last one the original layer is restored."""
    stack.drop(name)
    if stack.is_empty:
        _replace(part, path, stack.get_base_layer())


def _replace(part: nn.Module, path: str, layer: nn.Module) -> None:
    """Replace a layer by another and move its input hooks (hypernetworks) along."""
    parent, _, child = path.rpartition(".")
    old = part.get_submodule(path)
    hooks = "_forward_pre_hooks"
    moved, kept = getattr(old, hooks), getattr(layer, hooks)
    setattr(layer, hooks, moved)  # the dict itself: its hooks' handles hold it
    setattr(old, hooks, kept)
    setattr(part.get_submodule(parent), child, layer)
