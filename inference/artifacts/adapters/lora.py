"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank changes of linear and convolution layers."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from inference.artifacts.adapters.base import Adapter, adapter_of
from inference.artifacts.adapters.lora_files import is_adapter_folder, read_lora
from inference.artifacts.adapters.lora_formats import (
    ALPHA_KEYS,
    adapter_metadata,
    diffusers_tensors,
    is_lora,
    read_layers,
    says_alpha,
)
from inference.artifacts.adapters.lora_keys import family_of_names, layers_of, part_of
from inference.artifacts.adapters.low_rank import (
    LowRank,
    Stack,
    hang_in,
    take_out,
)
from inference.artifacts.base import Artifact
from inference.artifacts.metadata import hashes, lora_metadata, warn_of_other_family
from inference.files import are_finite, serialize, write_atomically
from inference.memory import is_packed, plain_weight, repack, unpacked_layer
from inference.models import LoraLayout, artifact_name, family_of
from inference.recipe import typed_options
from inference.runtime import ArtifactError, DrawWarning

if TYPE_CHECKING:
    from inference.models import DiffusionModel


def twin_of(path: Path) -> Path:
    """Return the path of the ComfyUI twin: `NAME.comfyui.safetensors` beside `NAME.safetensors`."""
    return path.with_name(f"{path.stem}.comfyui{path.suffix}")


def kohya_tensors(layers: Mapping[str, Adapter], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a file in kohya's format."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for suffix, value in layer.tensors().items():
            if is_convolution_in_kohya(name) and isinstance(layer, LowRank) and value.dim() == 2:
                value = value[..., None, None]
            tensors[f"{name}.{suffix}"] = value.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def is_convolution_in_kohya(name: str) -> bool:
    """Return whether kohya's layer is a 1x1 convolution although ours may be linear.

    So it is for SD 2.x's proj_in and proj_out; SDXL's, under original names, are linear.
    """
    return name.startswith(("lora_unet_down_", "lora_unet_mid_", "lora_unet_up_")) and (
        name.endswith(("_proj_in", "_proj_out"))
    )


def check_effect(path: Path, layers: Mapping[str, Adapter]) -> None:
    """Raise ArtifactError for a LoRA that changes nothing or is not finite."""
    parts = [part for layer in layers.values() for part in layer.effect()]
    tensors = (tensor for layer in layers.values() for tensor in layer.tensors().values())
    if not are_finite([*parts, *tensors]):
        raise ArtifactError(f"{path}: holds numbers that are not finite; its training went wrong")
    if not any(bool(part.any()) for part in parts):
        raise ArtifactError(f"{path}: changes nothing: every up half or alpha is zero")


def warn_of_alpha(path: Path, low_rank: Adapter, is_for_pictures: bool) -> None:
    """Warn which alpha is assumed if a file does not have one."""
    rank, alpha = low_rank.rank, low_rank.alpha
    taken = f"1 is taken, as SAT does, and so 1/{rank} of the product of its halves works"
    if alpha == rank:
        others = "A1111, ComfyUI" if is_for_pictures else "VideoX-Fun"
        taken = f"its rank, {rank}, is taken, as {others} and diffusers do"
    example = "" if is_for_pictures else " (DimensionX's with 1)"
    warnings.warn(
        f"{path}: does not say its alpha; {taken}. Was it trained with another{example}, then "
        "write that into it: python -m inference.convert … --alpha ALPHA",
        DrawWarning,
        stacklevel=3,
    )


def warn_of_some_alphas(path: Path, keys: Iterable[str], layers: int) -> None:
    """Warn if some of a file's layers have an alpha, and others do not."""
    with_alpha = sum(key.endswith(".alpha") for key in keys)
    if 0 < with_alpha < layers:
        warnings.warn(
            f"{path}: {layers - with_alpha} of {layers} layers have no alpha, the others do; their "
            "rank is taken, as A1111, ComfyUI and diffusers do. The file may be damaged",
            DrawWarning,
            stacklevel=3,
        )


HARMLESS = ("_text_projection",)
"""Suffixes of names that some tools write although SD 1.x and 2.x do not use such a layer."""

_numbers = itertools.count()


@dataclass(frozen=True)
class LoraSpec:
    """Options of a new LoRA's layers."""

    rank: int
    """Rank of the low-rank layers."""
    alpha: float
    """The change is scaled by alpha / rank."""
    dropout: float
    """Fraction of the layers' inputs, or of their ranks, dropped in training."""
    targets: Sequence[str] | None
    """Kinds of layers (keys of `lora_keys.TARGETS`); None is the default of the base model."""
    train_text_encoder: bool
    """Layers in the text encoders as well."""
    algorithm: str = "lora"
    """A name of `inference.config.ADAPTERS`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the algorithm."""
    drops_ranks: bool = False
    """Whether dropout acts on the ranks, after the down half."""


class _Place(NamedTuple):
    """A layer of a base model into which a LoRA is injected."""

    stack: Stack
    part: nn.Module
    path: str
    """Within the part."""
    is_text_encoder: bool


@final
class Lora(Artifact):
    """Low-rank layers by their kohya names; loaded from several formats.

    Saved in kohya's format, and for video models in diffusers'.
    """

    kind: ClassVar[str] = "lora"
    suffix = ".safetensors"

    def __init__(
        self, layers: Mapping[str, Adapter], metadata: dict[str, str], name: str = "lora"
    ) -> None:
        self.name = name
        self.layers = dict(layers)
        """Kohya name -> layer, e.g. `lora_unet_mid_block_attentions_0_proj_in`, and in a video
        transformer `lora_unet__transformer_blocks_0_attn1_to_q`."""
        self.metadata = metadata
        """Metadata of the file, without the hashes."""
        self.comfyui_twin = False
        """Whether `save` also writes a video model's LoRA for ComfyUI-CogVideoXWrapper."""
        self.strength = 1.0
        self._slot = f"lora{next(_numbers)}"
        self._attached: dict[str, _Place] = {}
        """Kohya name -> the layer into which this LoRA is injected."""

    @classmethod
    def create(cls, base: DiffusionModel, spec: LoraSpec, seed: int) -> Self:
        """Create a LoRA for training, in fp32: without effect yet, and not attached.

        The generator of each layer is seeded from `seed` and the layer's name.

        Args:
            base: an image or video model.
            spec: options of the layers.
            seed: of the initial weights.

        Raises:
            ArtifactError: the base model has no layers of a requested kind, or its text
                encoder cannot be trained.
        """
        rank, dropout = spec.rank, spec.dropout
        alpha = struct.unpack("f", struct.pack("f", spec.alpha))[0]  # fp32, as it is loaded again
        kind, layers = adapter_of(spec.algorithm), {}
        own = typed_options(kind.create, spec.options)
        layout = family_of(base).lora_layout(base)
        for part, path, module in _trained_layers(base, spec.targets, spec.train_text_encoder):
            name = layout.kohya_name(part, path)
            generator = _generator(seed, name)
            target = readable(module, kind)
            layers[name] = kind.create(target, rank, alpha, dropout, generator, **own)
            if spec.drops_ranks:
                layers[name].drop_ranks()
        metadata = lora_metadata(base, rank, alpha, dropout)
        if kind is not LowRank:
            facts = json.dumps({"algo": spec.algorithm, **own}, sort_keys=True)
            metadata |= {"ss_network_module": kind.network_module, "ss_network_args": facts}
        return cls(layers, metadata)

    @property
    def layout(self) -> LoraLayout:
        """Return the layout that names its layers."""
        return family_of_names(self.layers).lora_layouts[0]

    def modules_by_part(self) -> dict[str, nn.ModuleDict]:
        """Return lora_A, lora_B and dropout of every layer by part, for the objective."""
        parts: dict[str, nn.ModuleDict] = {}
        for name, low_rank in self.layers.items():
            parts.setdefault(part_of(name), nn.ModuleDict())[name] = low_rank
        return parts

    def attach(self, base: DiffusionModel, strength: float = 1.0) -> None:
        """Inject the layers into the denoiser (UNet or transformer) and the text encoders.

        Trainable layers stay fp32 (generate under autocast, or cast them to the base model's
        dtype first); others are copied to the base model's device and dtype.

        Raises:
            ArtifactError: already attached, a name matches no layer, or shapes differ.
        """
        if self._attached:
            raise ArtifactError(f"{self.name}: already attached; detach it first")
        places = self._places(base)
        warn_of_other_family(self.name, self.metadata, base)
        device, parts, encoders = base.device, base.parts, base.text_encoders
        for name, (part, path, _) in places.items():
            own = self.layers[name]
            own = own.to(device) if own.is_trained else own
            stack = hang_in(parts[part], path, self._slot, own)
            self._attached[name] = _Place(stack, parts[part], path, part in encoders)
        self.set_strength(strength)

    def set_strength(self, strength: float) -> None:
        """Set one strength for all parts; at 0 the layers are skipped."""
        self.set_strengths(strength, strength)

    def set_strengths(self, unet: float, text_encoder: float) -> None:
        """Set the strengths in the denoiser and the text encoders (A1111: `<lora:x:te:unet>`)."""
        self.strength = unet
        for place in self._attached.values():
            place.stack.set_strength(self._slot, text_encoder if place.is_text_encoder else unet)

    def limited(self, rank: int) -> Self:
        """Return a copy that uses only the first ranks, at the full scale (A1111's `dyn`)."""
        layers = {name: layer.limited(rank) for name, layer in self.layers.items()}
        return type(self)(layers, self.metadata, self.name)

    def forget(self) -> None:
        """Let go of its own layers, once the base model has copies; `detach` still works."""
        self.layers = {}

    def detach(self) -> None:
        """Restore the base model's own layers."""
        for place in self._attached.values():
            take_out(place.part, place.path, self._slot, place.stack)
        self._attached = {}

    def merge_into(self, base: DiffusionModel, strength: float = 1.0) -> None:
        """Add the LoRA to the base model's own weights: W + strength · alpha/r · B A.

        Computed in fp32 and rounded to the dtype of the weights; it cannot be undone. Packed
        weights (quantized) are unpacked for it, and packed again, which loses changes below their
        steps; a LoRA that is only attached loses nothing.

        Raises:
            ArtifactError: a name matches no layer, or shapes differ; the model is unchanged then.
        """
        for name, (_, _, module) in self._places(base).items():
            own, weight = self.layers[name], plain_weight(module)
            with torch.no_grad():
                device = next(own.parameters()).device
                change = own.delta(weight.to(device, torch.float32), strength)
            merged = (weight.float() + change.to(weight.device)).to(weight.dtype)
            if is_packed(module.weight):  # type: ignore[arg-type]
                repack(module, merged)
            else:
                module.weight.data = merged  # type: ignore[union-attr]

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write kohya's format; for a video model diffusers' format, and the twin if requested.

        `metadata` overrides the LoRA's own.
        """
        path = Path(path)
        if not self.has_diffusers_format:
            self._write(path, kohya_tensors(self.layers, dtype), metadata)
            return
        if self.comfyui_twin:
            self._write(twin_of(path), kohya_tensors(self.layers, dtype), metadata)
        low_rank = self.low_rank_layers
        ranks = {one.rank for one in low_rank.values()}
        alpha = str(float(ranks.pop())) if len(ranks) == 1 else "Dynamic"
        own = {"ss_network_alpha": alpha, **adapter_metadata(low_rank)}
        self._write(path, diffusers_tensors(low_rank, dtype), {**metadata, **own})

    @property
    def low_rank_layers(self) -> dict[str, LowRank]:
        """Return the plain LoRA layers, by kohya name."""
        return {name: one for name, one in self.layers.items() if isinstance(one, LowRank)}

    @property
    def has_diffusers_format(self) -> bool:
        """Return whether `save` writes diffusers' format, in which alpha is the rank."""
        is_plain = len(self.low_rank_layers) == len(self.layers)
        return self.layout.file_format == "diffusers" and is_plain

    @contextmanager
    def as_in_file(self) -> Iterator[dict[Tensor, float]]:
        """Compute with the alphas of the file that `save` writes.

        Yields:
            Up half -> the factor that the file's has; the caller multiplies them meanwhile.
        """
        layers = self.low_rank_layers if self.has_diffusers_format else {}
        factors = {layer.lora_B.weight: layer.scaling for layer in layers.values()}
        alphas = {name: layer.alpha for name, layer in layers.items()}
        try:
            self._set_alphas({name: float(layer.rank) for name, layer in layers.items()})
            yield factors
        finally:
            self._set_alphas(alphas)

    def _set_alphas(self, alphas: Mapping[str, float]) -> None:
        for name, alpha in alphas.items():
            self.layers[name].alpha = alpha
            if name in self._attached:
                self._attached[name].stack.set_alpha(self._slot, alpha)
        if alphas:
            self.set_strength(self.strength)

    def save_kohya(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write kohya's format, also for a video model's LoRA."""
        self._write(Path(path), kohya_tensors(self.layers, dtype), metadata)

    def _write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata = {"modelspec.title": self.name, **self.metadata, **metadata}
        content = serialize(tensors, {**metadata, **hashes(tensors, metadata)})
        write_atomically(path, lambda unfinished: unfinished.write_bytes(content))

    @classmethod
    def load(cls, path: Path, alpha: float | None = None) -> Self:
        """Load a LoRA in the format of kohya, diffusers, ComfyUI, peft or SAT.

        Args:
            path: a safetensors or pickle file, or the folder of a peft adapter.
            alpha: alpha of the training, for a file without it; None assumes the default of all
                tools, with a warning: the rank, and 1 for SAT.

        Raises:
            ArtifactError: the content is not understood, or would have no effect.
        """
        path = Path(path)
        tensors, metadata = read_lora(path)
        try:
            layers = read_layers(tensors, metadata, alpha)
            is_told = alpha is not None or says_alpha(tensors, metadata)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error
        check_effect(path, layers)
        dropped = ("sshs_model_hash", "sshs_legacy_hash", *ALPHA_KEYS, "format")
        kept = {key: value for key, value in metadata.items() if key not in dropped}
        lora = cls(layers, kept, artifact_name(path))
        if not is_told:
            warn_of_alpha(path, next(iter(layers.values())), lora.layout.file_format == "kohya")
        elif alpha is None:
            warn_of_some_alphas(path, tensors, len(layers))
        return lora

    @classmethod
    def recognizes(cls, path: Path, keys: Sequence[str]) -> bool:
        """Return whether the names of the tensors are those of a LoRA; or a folder peft's."""
        return is_lora(keys) or is_adapter_folder(path)

    def _places(self, base: DiffusionModel) -> dict[str, tuple[str, str, nn.Module]]:
        """Return kohya name -> part, path and layer of the base model, for each layer here.

        Layers that the base model lacks are left out with one warning.

        Raises:
            ArtifactError: shapes differ, or the base model lacks more than half of the layers.
        """
        known: dict[str, tuple[str, str, nn.Module]] = {}
        layout = family_of(base).lora_layout(base)
        for part, parent in reversed(changeable_parts(base).items()):  # of names, the first counts
            known |= named_layers(part, parent, layout)
        unmatched = [name for name in self.layers if name not in known]
        listed = f"{', '.join(unmatched[:3]) or 'no layers'}{', …' if len(unmatched) > 3 else ''}"
        if len(unmatched) == len(self.layers):
            raise ArtifactError(
                f"{self.name}: matches nothing in this base model ({base.path}). It holds "
                f"{listed}{self._made_for(base)}"
            )
        missing = [name for name in unmatched if not name.endswith(HARMLESS)]
        lacking = (
            f"{self.name}: {len(missing)} of {len(self.layers)} layers are not in this base "
            f"model ({base.path}): {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        )
        if len(missing) > len(self.layers) / 2:
            raise ArtifactError(f"{lacking}{self._made_for(base)}")
        places = {name: known[name] for name in self.layers if name in known}
        for name, (_, _, module) in places.items():
            try:
                layer = self.layers[name]
                layer.check_fit(readable(module, type(layer)), name)
            except ArtifactError as error:
                raise ArtifactError(f"{self.name}: {error}{self._made_for(base)}") from error
        if missing:
            warnings.warn(f"{lacking}; they have no effect", DrawWarning, stacklevel=3)
        return places

    def _made_for(self, base: DiffusionModel) -> str:
        """Describe the base model it was trained on, as far as shapes and metadata show.

        Empty where they show nothing that differs from this base model.
        """
        own, here = self.layout, family_of(base).lora_layout(base)
        widths = (self._input_width(reader, own.denoiser) for reader in own.readers)
        width = next(filter(None, widths), None)
        if width is None:
            return ""
        said = self.metadata.get("ss_base_model_version", "another model")
        words = {"width": width, "model": own.widths.get(width, said)}
        if own.denoiser != here.denoiser:
            elsewhere = own.made_for_elsewhere.format(**words)
            kind = family_of(base).draws
            return f". It was made for {elsewhere}; this base model is one of {kind}"
        if width != here.input_width(base):
            return f". It was made for {own.made_for.format(**words)} {here.input_width(base)}"
        return ""

    def _input_width(self, layer: str, part: str) -> int | None:
        """Return the most common input width of layers with this name; None if there are none."""
        widths = Counter(
            width
            for name, one in self.layers.items()
            if part_of(name) == part and name.endswith(layer) and (width := one.input_width)
        )
        return widths.most_common(1)[0][0] if widths else None


_named: WeakKeyDictionary[nn.Module, tuple[str, LoraLayout, dict[str, Any]]] = WeakKeyDictionary()


def named_layers(
    part: str, parent: nn.Module, layout: LoraLayout
) -> dict[str, tuple[str, str, nn.Module]]:
    """Return part, path and layer for every name that a file may have for a layer of a part.

    Made once for each part of a base model: its layers stay the same objects.
    """
    kept = _named.get(parent)
    if kept is None or kept[:2] != (part, layout):
        found: dict[str, tuple[str, str, nn.Module]] = {}
        for path, module in layers_of(parent):
            for name in layout.known_names(part, path):
                found.setdefault(name, (part, path, module))
        kept = _named[parent] = (part, layout, found)
    return kept[2]


def readable(layer: nn.Module, kind: type[Adapter]) -> nn.Module:
    """Return a layer with weights that an adapter can read, if these are packed (quantized).

    LoRA reads sizes alone.
    """
    return layer if kind is LowRank else unpacked_layer(layer)


def changeable_parts(base: DiffusionModel) -> dict[str, nn.Module]:
    """Return the parts that a LoRA can change: the denoiser and trainable text encoders."""
    parts: dict[str, nn.Module] = {base.denoiser_name: base.denoiser}
    keeps_text = family_of(base).lora_layout(base).text_encoder_targets is None
    return parts if keeps_text else parts | base.text_encoders


def _trained_layers(
    base: DiffusionModel, targets: Sequence[str] | None, train_text_encoder: bool
) -> list[tuple[str, str, nn.Module]]:
    """Return part, path and layer of every trained layer, in the model's order.

    Raises:
        ArtifactError: the model lacks one of the targets, or the text encoder cannot be trained.
    """
    family, denoiser = family_of(base), base.denoiser_name
    layout = family.lora_layout(base)
    if train_text_encoder and layout.text_encoder_targets is None:
        raise ArtifactError(
            f"train_text_encoder: true is not supported on {base.path!r}, {family.kind}: "
            f"{layout.untrained_text_encoder}"
        )
    wanted = list(targets or layout.usual_targets)
    layers: list[tuple[str, str, nn.Module]] = []
    matched: set[str] = set()
    for part, parent in changeable_parts(base).items():
        for path, module in layers_of(parent):
            if part == denoiser:
                hits = {one for one in wanted if layout.is_target(path, module, one)}
                matched |= hits
            else:
                hits = train_text_encoder and layout.is_text_encoder_target(path)
            if hits:
                layers.append((part, path, module))
    if missing := [one for one in wanted if one not in matched]:
        own = list(layers_of(base.denoiser))
        there = [
            one for one in layout.targets if any(layout.is_target(*layer, one) for layer in own)
        ]
        raise ArtifactError(
            f"targets: the {denoiser} of {base.path!r} has no layers of the kind "
            f"{', '.join(missing)}; it has {', '.join(there) or 'none'}"
        )
    return layers


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
