"""Hypernetworks as in A1111 1.10.1: small networks in front of attention's keys and values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inference.artifacts.base import Artifact, check_kind
from inference.artifacts.hypernetwork_files import (
    KEY,
    RUN_KEYS,
    Facts,
    HypernetworkSpec,
    a1111_file,
    comfyui_difference,
    initial_pair,
    network_tensors,
    read_hypernetwork,
    safetensors_file,
)
from inference.artifacts.metadata import made_upon
from inference.files import refuse_not_finite, serialize, write_atomically, write_pickle
from inference.runtime import ArtifactError, DrawWarning

if TYPE_CHECKING:
    from inference.models import DiffusionModel, ImageModel

FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
"""Width of the prompt embeddings -> the family of base models."""


@final
class Hypernetwork(Artifact):
    """Pairs of networks by the width of the contexts that they change.

    Several are applied one after the other, in the order in which they were attached.
    """

    kind: ClassVar[str] = "hypernetwork"
    suffix = ".pt"

    def __init__(
        self,
        pairs: dict[int, nn.ModuleList],
        spec: HypernetworkSpec,
        facts: Facts,
        name: str = "hypernetwork",
    ) -> None:
        self.name = name
        self.pairs = pairs
        """Width -> the networks for keys and for values."""
        self.spec = spec
        self.facts = facts
        """Metadata of the file besides its options, by A1111's names."""
        self.strength = 1.0
        self._is_reported = False
        """Whether a difference in ComfyUI was reported."""
        self._at_work: dict[int, nn.ModuleList] = {}
        self._handles: list[RemovableHandle] = []

    @classmethod
    def create(
        cls, base: ImageModel, spec: HypernetworkSpec, sizes: Sequence[int] | None, seed: int
    ) -> Self:
        """Create a hypernetwork for training, in fp32 and not attached yet.

        Args:
            base: the base model.
            spec: the networks' layers.
            sizes: widths of contexts to change (A1111: Modules); None for all widths.
            seed: of the initial weights.

        Raises:
            ArtifactError: the base model has no contexts of a requested width.
        """
        known = sorted(context_widths(base))
        missing = [width for width in sizes or () if width not in known]
        if missing:
            raise ArtifactError(
                f"objective.sizes: {missing[0]} is not to be found in this base model "
                f"({base.path}); its attention has contexts of width {', '.join(map(str, known))}"
            )
        pairs = {width: initial_pair(width, spec, seed) for width in sizes or known}
        return cls(pairs, spec, made_upon(base))

    @property
    def is_trained(self) -> bool:
        """Return whether its weights get gradients."""
        return any(p.requires_grad for pair in self.pairs.values() for p in pair.parameters())

    def attach(self, base: DiffusionModel, strength: float = 1.0) -> None:
        """Inject the networks before `to_k` and `to_v` of every attention layer.

        Trainable networks stay as they are; others are copied to the base model's device and
        dtype.

        Raises:
            ArtifactError: already attached, or no context of this base model has such a width.
        """
        if self._handles:
            raise ArtifactError(f"{self.name}: already attached; detach it first")
        base = check_kind(self, base)
        known = context_widths(base)
        if not known & self.pairs.keys():
            own = base.denoiser.config.cross_attention_dim
            made_for = [FAMILIES[width] for width in sorted(self.pairs) if width in FAMILIES]
            raise ArtifactError(
                f"{self.name}: changes contexts of width {', '.join(map(str, self.pairs))}"
                f"{f' ({made_for[0]})' if made_for else ''}; this base model ({base.path}) has "
                f"{', '.join(map(str, sorted(known)))} (prompts: {own}), so it would have no effect"
            )
        self._at_work = self.pairs
        if not self.is_trained:
            self._at_work = {
                width: copy.deepcopy(pair).to(base.device, base.dtype).eval()
                for width, pair in self.pairs.items()
            }
        for layer, role in attention_inputs(base):
            hook = self._hook(role)
            self._handles.append(layer.register_forward_pre_hook(hook))
        self.set_strength(strength)

    def set_strength(self, strength: float) -> None:
        """Set A1111's multiplier: at 0 contexts pass unchanged; in training it is always 1."""
        self.strength = strength
        for pair in (*self.pairs.values(), *self._at_work.values()):
            for network in pair:
                network.strength = strength  # type: ignore[assignment]

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._at_work = {}

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write A1111's `.pt`, or safetensors by the path's suffix.

        The first time, a difference of a `.pt` in ComfyUI is reported.

        Args:
            path: the file.
            dtype: dtype of the weights.
            metadata: `ss_output_name` and `ss_steps` are written under A1111's names.

        Raises:
            NotFiniteError: a value is not finite.
        """
        path = Path(path)
        facts = dict(self.facts)
        facts["name"] = metadata.get("ss_output_name", facts.get("name") or self.name)
        facts["step"] = int(metadata.get("ss_steps", facts.get("step") or 0))
        content = a1111_file(self.pairs, self.spec, facts)
        for width, pair in content.items():
            if isinstance(width, int):
                content[width] = tuple(
                    {key: value.to("cpu", dtype).contiguous() for key, value in state.items()}
                    for state in pair
                )
        refuse_not_finite(network_tensors(content))
        if path.suffix.lower() != ".safetensors":
            self._report_comfyui(path)
            write_pickle(path, content)
            return
        tensors, texts = safetensors_file(content)
        known = {key: value for key, value in facts.items() if key.startswith(RUN_KEYS)}
        data = serialize(tensors, {**texts, **known, **metadata})
        write_atomically(path, lambda unfinished: unfinished.write_bytes(data))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load A1111's files of every version, and safetensors.

        Raises:
            ArtifactError: the content is not understood, has no effect, or is not finite.
        """
        path = Path(path)
        pairs, spec, facts = read_hypernetwork(path)
        weights = [p for pair in pairs.values() for network in pair for p in network.parameters()]
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise ArtifactError(f"{path}: holds numbers that are not finite; its training failed")
        if not any(bool(weight.any()) for weight in weights):
            raise ArtifactError(f"{path}: changes nothing: every weight is zero")
        return cls(pairs, spec, facts, path.stem)

    @classmethod
    def recognizes(cls, path: Path, keys: Sequence[str]) -> bool:
        """Recognize widths as keys (`.pt`), or `768.k.linear.0.weight` (safetensors)."""
        return any(key.isdecimal() or KEY.fullmatch(key) for key in keys)

    def _report_comfyui(self, path: Path) -> None:
        difference = comfyui_difference(self.spec)
        if difference and not self._is_reported:
            self._is_reported = True
            warnings.warn(f"{path}: {difference}", DrawWarning, stacklevel=3)

    def _hook(self, role: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def change(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            context: Tensor = inputs[0]
            pair = self._at_work.get(context.shape[-1])
            return inputs if pair is None else (pair[role](context), *inputs[1:])

        return change


def attention_inputs(base: ImageModel) -> list[tuple[nn.Module, int]]:
    """Return every layer of the UNet that computes keys (0) or values (1) from a context.

    Raises:
        ArtifactError: the projections are fused.
    """
    layers: list[tuple[nn.Module, int]] = []
    for name, module in base.denoiser.named_modules():
        if not name.endswith(("attn1", "attn2")):
            continue
        if getattr(module, "fused_projections", False):
            raise ArtifactError(
                f"unet.{name}: its projections are fused, so that keys and values have no layers "
                "of their own; call unfuse_qkv_projections() first"
            )
        layers += [(module.to_k, 0), (module.to_v, 1)]  # type: ignore[list-item]
    return layers


def context_widths(base: ImageModel) -> set[int]:
    """Return the widths of attention's contexts: of prompts, and of images at every depth."""
    return {int(layer.in_features) for layer, _ in attention_inputs(base)}  # type: ignore[arg-type]
