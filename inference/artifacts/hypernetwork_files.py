"""Files of hypernetworks: A1111's `.pt` of every version, and safetensors.

A1111 1.10.1 (`modules/hypernetworks/hypernetwork.py`) and its history since 2022-10-07. A tensor's
layer is identified by its shape and order, not by the number in its key: the numbers
shift with dropout and activations, and between the versions.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.files import read_pickle, read_tensors
from inference.runtime import ArtifactError

UNUSABLE = ("glu", "threshold", "multiheadattention")
"""Offered by A1111's page as activations, or classes of the same module; none of them works."""

ALONG_THE_BATCH = ("softmax", "softmin", "logsoftmax")
"""Created without a dimension, as in A1111, these use the contexts' first one: the batch."""

COMFYUI = (
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish",
)  # fmt: skip
"""The activations that ComfyUI knows (`comfy_extras/nodes_hypernetwork.py`)."""

INITIAL_STD = 0.01
"""Of Normal's weights, and of every LayerNorm's gain, as A1111 initializes."""


@dataclass(frozen=True)
class HypernetworkSpec:
    """The options that define a network's layers, by A1111's names."""

    layer_structure: tuple[float, ...] = (1, 2, 1)
    """Widths as multiples of the context's; the first and the last are 1."""
    activation_func: str = "linear"
    is_layer_norm: bool = False
    dropout_structure: tuple[float, ...] = ()
    """Entry i + 1 is the dropout after layer i; empty for none."""
    activate_output: bool = False
    weight_initialization: str = "Normal"

    def __post_init__(self) -> None:
        if not self.dropout_structure:
            object.__setattr__(self, "dropout_structure", (0.0,) * len(self.layer_structure))


def activation(name: str) -> nn.Module | None:
    """Return A1111's activation of that name, case-insensitive; None for `linear`.

    Raises:
        ArtifactError: there is none of that name, or it cannot be used.
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


def comfyui_difference(spec: HypernetworkSpec) -> str | None:
    """Return how ComfyUI applies such networks differently from A1111; None if it does not."""
    name = spec.activation_func.lower()
    if name not in COMFYUI:
        return (
            f"ComfyUI does not apply a hypernetwork with activation_func: {name}; it knows "
            f"{', '.join(COMFYUI)}"
        )
    if spec.is_layer_norm and name != "linear" and not spec.activate_output:
        return (
            f"ComfyUI applies {name} after the last layer too if a hypernetwork has "
            "add_layer_norm, and so generates other images than A1111; activate_output: true is "
            "the same in both"
        )
    return None


class HypernetworkModule(nn.Module):
    """One network of a pair; its layers have the names of A1111's files."""

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
        """Map a context (…, width) to the same shape; in training at strength 1, as in A1111."""
        strength = 1.0 if self.training else self.strength
        if strength == 0:
            return context
        return context + self.linear(context) * strength

    @torch.no_grad()
    def initialize(self, method: str, activation_func: str, generator: torch.Generator) -> None:
        """Apply A1111's `weight_initialization`; biases are 0, LayerNorm's gain always near 0."""
        like = "leaky_relu" if activation_func.lower() == "leakyrelu" else "relu"
        initializers: dict[str, Callable[..., Tensor]] = {
            "Normal": partial(nn.init.normal_, std=INITIAL_STD),
            "XavierUniform": nn.init.xavier_uniform_,
            "XavierNormal": nn.init.xavier_normal_,
            "KaimingUniform": partial(nn.init.kaiming_uniform_, nonlinearity=like),
            "KaimingNormal": partial(nn.init.kaiming_normal_, nonlinearity=like),
        }
        for layer in self.linear:
            if isinstance(layer, nn.LayerNorm):
                nn.init.normal_(layer.weight, std=INITIAL_STD, generator=generator)
                nn.init.zeros_(layer.bias)
            if not isinstance(layer, nn.Linear):
                continue
            nn.init.zeros_(layer.bias)
            if method not in initializers:
                raise ArtifactError(f"hypernetwork: no weight_initialization {method!r}")
            initializers[method](layer.weight, generator=generator)


def initial_pair(width: int, spec: HypernetworkSpec, seed: int) -> nn.ModuleList:
    """Return networks for keys and for values to train; seeded by (seed, width, role)."""
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
    """Return how much the networks change normal contexts: the largest |change| / |context|.

    In evaluation mode; A1111's `Normal` starts near 0.01, Kaiming without LayerNorm above 1.
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
    """Return a layer with uninitialized weights, without drawing random numbers."""
    return layer.to_empty(device="cpu")


FORMAT = "limner.hypernetwork.1"
KEY = re.compile(r"(\d+)\.([kv])\.(linear\.\d+\.(?:weight|bias))")
ROLES = ("k", "v")
RUN_KEYS = ("ss_", "modelspec.")
"""Beginnings of the metadata keys of a run, whose values are texts."""

KINDS: dict[tuple[int, bool], type[nn.Module]] = {
    (2, True): nn.Linear,
    (1, True): nn.LayerNorm,
    (1, False): nn.PReLU,
}
"""Dimensions of a weight, and whether there is a bias -> the kind of layer."""

Facts = dict[str, Any]
"""Metadata of a file, by A1111's names: `step`, `name`, `layer_structure`, …"""
States = dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]
"""Width -> weights for keys, weights for values."""


def read_hypernetwork(path: Path) -> tuple[dict[int, nn.ModuleList], HypernetworkSpec, Facts]:
    """Return the networks of a file by width, their options, and its other metadata.

    Raises:
        ArtifactError: it cannot be read safely, or is no supported hypernetwork.
    """
    states, facts = (_from_safetensors if path.suffix.lower() == ".safetensors" else _from_pickle)(
        path
    )
    if facts.get("skip_connection") or facts.get("upsample_linear"):
        raise ArtifactError(
            f"{path}: made by the Hypernetwork-MonkeyPatch extension with skip_connection or "
            "upsample_linear; expected A1111's own layers. A1111 itself cannot load it either"
        )
    if not states:
        raise ArtifactError(f"{path}: no networks in it; expected widths such as 768 as keys")
    try:
        spec = _spec(states, facts)
        pairs = {
            width: nn.ModuleList(_network(width, spec, state) for state in pair)
            for width, pair in states.items()
        }
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return pairs, spec, facts


def a1111_file(
    pairs: Mapping[int, nn.ModuleList], spec: HypernetworkSpec, facts: Facts
) -> dict[Any, Any]:
    """Return the dict that A1111 saves and loads: metadata by name, networks by width (an int)."""
    dropout = [_plain(rate) for rate in spec.dropout_structure]
    return {
        **{
            width: tuple(dict(network.state_dict()) for network in pair)
            for width, pair in pairs.items()
        },
        "step": int(facts.get("step", 0)),
        "name": str(facts.get("name", "")),
        "layer_structure": [_plain(multiple) for multiple in spec.layer_structure],
        "activation_func": spec.activation_func,
        "is_layer_norm": spec.is_layer_norm,
        "weight_initialization": spec.weight_initialization,
        "sd_checkpoint": facts.get("sd_checkpoint"),
        "sd_checkpoint_name": facts.get("sd_checkpoint_name"),
        "activate_output": spec.activate_output,
        "use_dropout": False,  # else ComfyUI generates with dropout; A1111 goes by the next one
        "dropout_structure": dropout,
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": facts.get("optional_info"),
    }


def network_tensors(content: dict[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of A1111's dict by names `WIDTH.k.linear.N.weight`."""
    return {
        f"{width}.{role}.{key}": value
        for width, pair in content.items()
        if isinstance(width, int)
        for role, state in zip(ROLES, pair, strict=True)
        for key, value in state.items()
    }


def safetensors_file(content: dict[Any, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the same as tensors and JSON values as metadata."""
    facts = {key: json.dumps(value) for key, value in content.items() if isinstance(key, str)}
    return network_tensors(content), {"format": FORMAT, **facts}


def _from_pickle(path: Path) -> tuple[States, Facts]:
    content = read_pickle(path)
    states = {
        width: (pair[0], pair[1])
        for width, pair in content.items()
        if isinstance(width, int)
        and isinstance(pair, tuple | list)
        and len(pair) == 2
        and all(isinstance(state, dict) for state in pair)
    }
    return states, {key: value for key, value in content.items() if isinstance(key, str)}


def _from_safetensors(path: Path) -> tuple[States, Facts]:
    tensors, metadata = read_tensors(path)
    states: States = {}
    for name, value in tensors.items():
        found = KEY.fullmatch(name)
        if not found:
            raise ArtifactError(f"{path}: {name!r} is no key of a hypernetwork ({FORMAT})")
        pair = states.setdefault(int(found[1]), ({}, {}))
        pair[ROLES.index(found[2])][found[3]] = value
    try:
        facts = {
            key: value if key.startswith(RUN_KEYS) else json.loads(value)
            for key, value in metadata.items()
            if key != "format"
        }
    except ValueError as error:
        raise ArtifactError(f"{path}: its metadata is not JSON: {error}") from error
    return states, facts


def _spec(states: States, facts: Facts) -> HypernetworkSpec:
    """Return the options of a file, with A1111's defaults for what older files lack.

    The layers' widths, and whether there is LayerNorm, are taken from the tensors.
    """
    width, (state, _) = next(iter(states.items()))
    layers = _sorted_layers(state)
    linears = layers[nn.Linear]
    if not linears:
        raise ArtifactError("a network without layers")
    sizes = [linears[0][0].shape[1], *(weight.shape[0] for weight, *_ in linears)]
    said = [float(multiple) for multiple in facts.get("layer_structure") or ()]
    fits = [int(width * multiple) for multiple in said] == sizes
    structure = tuple(said) if fits else tuple(size / width for size in sizes)
    dropout = facts.get("dropout_structure") or _old_dropout(len(structure), facts)
    if len(dropout) != len(structure):
        raise ArtifactError(f"dropout_structure {dropout} does not go with {list(structure)}")
    return HypernetworkSpec(
        layer_structure=structure,
        activation_func=(facts.get("activation_func") or "linear").lower(),
        is_layer_norm=bool(layers[nn.LayerNorm]),
        dropout_structure=tuple(float(rate) for rate in dropout),
        activate_output=bool(facts.get("activate_output", True)),
        weight_initialization=facts.get("weight_initialization") or "Normal",
    )


def _old_dropout(length: int, facts: Facts) -> list[float]:
    """Return the dropout_structure that corresponds to `use_dropout` of 2022."""
    if not facts.get("use_dropout") or length < 3:
        return [0.0] * length
    last = 0.3 if facts.get("last_layer_dropout", False) else 0.0
    return [0.0, *[0.3] * (length - 3), last, 0.0]


def _network(width: int, spec: HypernetworkSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with a file's weights, assigned by type and order."""
    network = HypernetworkModule(width, spec)
    for kind, found in _sorted_layers(state).items():
        layers = [layer for layer in network.linear if isinstance(layer, kind)]
        if len(layers) != len(found):
            raise ArtifactError(
                f"width {width}: {len(found)} layers of kind {kind.__name__}, but its options "
                f"({spec}) make {len(layers)}"
            )
        for layer, tensors in zip(layers, found, strict=True):
            for name, tensor in zip(("weight", "bias"), tensors, strict=False):
                shape = tuple(getattr(layer, name).shape)
                if shape != tuple(tensor.shape):
                    raise ArtifactError(
                        f"width {width}: a {kind.__name__} of shape {tuple(tensor.shape)}; its "
                        f"options need {shape}"
                    )
                setattr(layer, name, nn.Parameter(tensor, requires_grad=False))
    return network


def _sorted_layers(state: Mapping[str, Tensor]) -> dict[type[nn.Module], list[tuple[Tensor, ...]]]:
    """Return weight and bias, if any, of every layer of each kind, in the layers' order."""
    numbered = re.compile(r"linear\.?(\d+)\.weight")  # `linear1.weight` until 2022-10-19
    layers: dict[type[nn.Module], list[tuple[Tensor, ...]]] = {kind: [] for kind in KINDS.values()}
    found = [(int(match[1]), key) for key in state if (match := numbered.fullmatch(key))]
    for _, key in sorted(found):
        weight, bias = state[key], state.get(key.removesuffix("weight") + "bias")
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
            raise ArtifactError(f"{key}: no tensor, or its bias is none")
        kind = KINDS.get((weight.dim(), bias is not None))
        if kind is None:
            raise ArtifactError(f"{key}: shape {tuple(weight.shape)} is no layer that we know")
        layers[kind].append((weight,) if bias is None else (weight, bias))
    return layers


def _plain(value: float) -> float:
    """Return 2.0 as 2, as A1111 writes it."""
    return int(value) if float(value).is_integer() else float(value)
