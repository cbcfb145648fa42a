"""The network of a hypernetwork: a residual MLP over attention's context (A1111 1.10.1).

One pair of them, for keys and for values, stands before every attention layer whose context has a
certain width: `context + strength * linear(context)`.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.artifacts.base import ArtifactError

UNUSABLE = ("glu", "threshold", "multiheadattention")
"""Offered by A1111's page as activations, or classes of the same module; none works as one."""

ALONG_THE_BATCH = ("softmax", "softmin", "logsoftmax")
"""Made without a dimension, as A1111 makes them, these take contexts' first one: the batch."""

INITIAL_STD = 0.01
"""Of Normal's weights, and of every LayerNorm's gain, as A1111 begins."""


@dataclass(frozen=True)
class HypernetworkSpec:
    """The options that decide a network's layers, by A1111's names."""

    layer_structure: tuple[float, ...] = (1, 2, 1)
    """Widths as multiples of the context's; the first and the last are 1."""
    activation_func: str = "linear"
    is_layer_norm: bool = False
    dropout_structure: tuple[float, ...] = ()
    """Entry i + 1 is the dropout after layer i; empty for none at all."""
    activate_output: bool = False
    weight_initialization: str = "Normal"

    def __post_init__(self) -> None:
        if not self.dropout_structure:
            object.__setattr__(self, "dropout_structure", (0.0,) * len(self.layer_structure))


def activation(name: str) -> nn.Module | None:
    """A1111's activation of that name, in any case of letters; None for `linear`.

    Raises:
        ArtifactError: there is none of that name, or it cannot be one.
    """
    name = name.lower()
    if name == "linear":
        return None
    if name == "swish":  # A1111's "swish" is Hardswish, not SiLU
        return nn.Hardswish()
    module = torch.nn.modules.activation
    classes = {
        class_name.lower(): found
        for class_name, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, nn.Module) and found.__module__ == module.__name__
    }
    if name not in classes or name in UNUSABLE:
        raise ArtifactError(f"hypernetwork: no activation {name!r}")
    return classes[name](dim=0) if name in ALONG_THE_BATCH else classes[name]()


class HypernetworkModule(nn.Module):
    """One network of a pair; its layers' names are those in A1111's files."""

    def __init__(self, width: int, spec: HypernetworkSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [int(width * multiple) for multiple in spec.layer_structure]
        last = len(widths) - 2
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            layers.append(_empty(nn.Linear(before, after, device="meta")))
            function = activation(spec.activation_func)
            if function is not None and (index < last or spec.activate_output):
                layers.append(function)
            if spec.is_layer_norm:
                layers.append(_empty(nn.LayerNorm(after, device="meta")))
            if spec.dropout_structure[index + 1] > 0:
                layers.append(nn.Dropout(spec.dropout_structure[index + 1]))
        self.linear = nn.Sequential(*layers)
        self.strength = 1.0

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.linear if isinstance(layer, nn.Linear)]

    def forward(self, context: Tensor) -> Tensor:
        """Context (…, width) -> the same shape. While training the strength is 1, as in A1111."""
        strength = 1.0 if self.training else self.strength
        if strength == 0:
            return context
        return context + self.linear(context) * strength

    @torch.no_grad()
    def initialize(self, method: str, activation_func: str, generator: torch.Generator) -> None:
        """A1111's `weight_initialization`; biases 0, and LayerNorm's gain near 0 in any case."""
        like = "leaky_relu" if activation_func.lower() == "leakyrelu" else "relu"
        for layer in self.linear:
            if isinstance(layer, nn.LayerNorm):
                nn.init.normal_(layer.weight, std=INITIAL_STD, generator=generator)
                nn.init.zeros_(layer.bias)
            if not isinstance(layer, nn.Linear):
                continue
            nn.init.zeros_(layer.bias)
            if method == "Normal":
                nn.init.normal_(layer.weight, std=INITIAL_STD, generator=generator)
            elif method == "XavierUniform":
                nn.init.xavier_uniform_(layer.weight, generator=generator)
            elif method == "XavierNormal":
                nn.init.xavier_normal_(layer.weight, generator=generator)
            elif method == "KaimingUniform":
                nn.init.kaiming_uniform_(layer.weight, nonlinearity=like, generator=generator)
            elif method == "KaimingNormal":
                nn.init.kaiming_normal_(layer.weight, nonlinearity=like, generator=generator)
            else:
                raise ArtifactError(f"hypernetwork: no weight_initialization {method!r}")


def initial_pair(width: int, spec: HypernetworkSpec, seed: int) -> nn.ModuleList:
    """Networks for keys and for values, to be trained; each begins from (seed, width, role)."""
    pair = nn.ModuleList()
    for role in ("k", "v"):
        digest = hashlib.sha256(f"{seed}:{width}:{role}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        network = HypernetworkModule(width, spec)
        network.initialize(spec.weight_initialization, spec.activation_func, generator)
        pair.append(network)
    return pair


@torch.no_grad()
def distance_from_identity(pairs: Sequence[nn.ModuleList]) -> float:
    """How much the networks change normal contexts: the largest |change| / |context| of them.

    In evaluation mode; A1111's `Normal` begins near 0.01, Kaiming without LayerNorm above 1.
    """
    distances = [0.0]
    for pair in pairs:
        for network in pair:
            assert isinstance(network, HypernetworkModule)
            width = network.linears[0].in_features
            context = torch.randn(64, width, generator=torch.Generator().manual_seed(width))
            training = network.training
            change = network.eval().linear(context)
            network.train(training)
            distances.append(float(change.norm() / context.norm()))
    return max(distances)


def _empty(layer: nn.Module) -> nn.Module:
    """A layer with weights that are not set yet; nothing random is drawn for them."""
    return layer.to_empty(device="cpu")
