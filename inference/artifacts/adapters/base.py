"""The interface of adapters: one file and one entry in `ADAPTERS` for each algorithm.

An adapter changes the output of a linear or convolution layer; its tensors have kohya's names,
`<layer>.<suffix>`. LoRA is the first (`low_rank.py`).
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.config import ADAPTERS
from inference.memory import is_packed, plain_weight
from inference.runtime import ArtifactError

A = TypeVar("A", bound="type[Adapter]")

NO_DROPOUT = nn.Identity()
"""Shared by all layers: hundreds of LoRAs have tens of thousands."""


class Adapter(nn.Module, ABC):
    """The trained part of one layer."""

    kind: ClassVar[str]
    """The name in `ADAPTERS`."""
    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the keys in files, besides `alpha`; no other adapter has these."""
    network_module: ClassVar[str] = "lycoris.kohya"
    """kohya's `ss_network_module`."""
    alpha: float
    dropout: nn.Module
    """Before the layer's input, while training."""

    def __init__(self, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.dropout = nn.Dropout(dropout) if dropout else NO_DROPOUT

    @classmethod
    @abstractmethod
    def create(
        cls, target: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> Self:
        """Return a new adapter for a layer, in fp32 and without effect yet.

        Further parameters, with types and defaults, are options of the recipe. Random numbers come
        from `generator` into tensors made by `torch.empty`, so that a plan works without values.
        """

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> Self:
        """Return the adapter with these `tensors`; alpha is None if the file has none.

        Raises:
            ArtifactError: a tensor is missing, or shapes do not agree.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a file by suffix, without alpha."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Return the width of the bottleneck."""

    @abstractmethod
    def delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of the layer's weight, in the weight's shape."""

    @abstractmethod
    def check_fit(self, target: nn.Module, name: str) -> None:
        """Check that the shapes match those of a layer.

        Raises:
            ArtifactError: the shapes differ; the message has `name` and both shapes.
        """

    @property
    def is_trained(self) -> bool:
        """Return whether its weights get gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def input_width(self) -> int | None:
        """Return the input width of its layer, if its own shapes show it."""
        return None

    def effect(self) -> Iterator[Tensor]:
        """Yield tensors that are all zero only where nothing is changed."""
        yield from self.tensors().values()

    def fitted(self, target: nn.Module) -> Self:
        """Return a copy for inference, on a layer's device and in its dtype."""
        weight: Tensor = target.weight  # type: ignore[assignment]
        tensors = {
            name: value.detach().to(weight.device, working_dtype(target), copy=True)
            for name, value in self.tensors().items()
        }
        return type(self).from_tensors(tensors, self.alpha).requires_grad_(False).eval()

    def limited(self, rank: int) -> Self:
        """Return a copy that uses only the first ranks, at the full scale (A1111's `dyn`).

        Raises:
            ArtifactError: this adapter has no ordered ranks.
        """
        raise ArtifactError(f"{self.kind} cannot be limited to {rank} of its ranks")

    def drop_ranks(self) -> None:
        """Let the dropout act on the ranks instead of the layer's inputs.

        Raises:
            ArtifactError: this adapter has no ranks between two layers.
        """
        raise ArtifactError(f"{self.kind} has no ranks that dropout could act on")

    def forward(self, x: Tensor, layer: nn.Module, strength: float) -> Tensor:
        """Return what is added to a layer's output."""
        x = self.dropout(x)
        change = self.delta(plain_weight(layer), strength).to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            geometry = layer.stride, layer.padding, layer.dilation, layer.groups
            return functional.conv2d(x, change, None, *geometry)  # type: ignore[arg-type]
        return functional.linear(x, change)


def adapter(name: str) -> Callable[[A], A]:
    """Return the decorator that registers an adapter as `objective.algorithm: name`.

    Raises:
        ValueError: the name is that of a built-in adapter.
    """

    def add(kind: A) -> A:
        place = ADAPTERS.get(name)
        if not isinstance(place, str):
            ADAPTERS[name] = kind
        elif place != f"{kind.__module__}:{kind.__name__}":
            raise ValueError(f"{name!r} is built in; choose another name")
        kind.kind = name
        return kind

    return add


def adapter_of(name: str) -> type[Adapter]:
    """Return the class of a registered adapter."""
    target: Any = ADAPTERS[name]
    return pkgutil.resolve_name(target) if isinstance(target, str) else target


def adapter_with(suffix: str) -> type[Adapter] | None:
    """Return the adapter that a tensor of this suffix belongs to."""
    kinds = (adapter_of(name) for name in ADAPTERS)
    return next((kind for kind in kinds if suffix in kind.suffixes), None)


def working_dtype(target: nn.Module) -> torch.dtype:
    """Return the dtype of a layer's weights; for packed weights, the dtype it computes in."""
    weight: Tensor = target.weight  # type: ignore[assignment]
    return target.compute_dtype if is_packed(weight) else weight.dtype  # type: ignore
