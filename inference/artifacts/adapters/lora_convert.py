"""Convert LoRA files from kohya's format to diffusers' and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from inference.artifacts.adapters.base import Adapter
from inference.artifacts.adapters.lora import Lora, is_convolution_in_kohya
from inference.artifacts.adapters.lora_formats import adapter_metadata, diffusers_tensors
from inference.artifacts.adapters.lora_keys import (
    diffusers_path,
    family_of_names,
    kohya_name,
    part_of,
)
from inference.artifacts.adapters.low_rank import LowRank
from inference.artifacts.metadata import hashes
from inference.files import serialize, write_atomically
from inference.models import LoraLayout
from inference.runtime import ArtifactError

Layers = Mapping[str, Adapter]
"""Layers by their kohya names."""


def variant_of(layers: Layers) -> tuple[LoraLayout, int | None]:
    """Return the layout of a LoRA's variant, and the width that identifies it."""
    family = family_of_names(layers)
    width = read_width(layers, family.lora_layouts[0])
    return family.lora_variant(layers, width), width


def read_width(layers: Layers, layout: LoraLayout) -> int | None:
    """Return the input width that identifies a LoRA's model; None if no layer has it."""
    widths = Counter(
        width
        for name, layer in layers.items()
        if part_of(name) == layout.denoiser
        and name.endswith(layout.readers)
        and (width := layer.input_width)
    )
    return widths.most_common(1)[0][0] if widths else None


def diffusers_note(lora: Lora) -> str | None:
    """Return why diffusers does not load a LoRA in kohya's format; None if it does.

    kohya writes SD 2.x's proj_in and proj_out as convolutions; they are linear layers there.
    """
    projections = [
        layer.lora_A.weight
        for name, layer in lora.layers.items()
        if is_convolution_in_kohya(name) and isinstance(layer, LowRank)
    ]
    layout, width = variant_of(lora.layers)
    if layout.file_format != "kohya" or not projections:
        return None
    is_linear = lora.metadata.get("ss_v2") == "True" or width in layout.linear_widths
    if not is_linear and all(weight.dim() == 4 for weight in projections):
        return None
    return (
        "diffusers does not load this file: as kohya does, it has SD 2.x's proj_in and proj_out as "
        "convolutions. `python -m inference.convert IN OUT --to diffusers` writes one that it loads"
    )


def save_kohya(lora: Lora, path: Path, dtype: torch.dtype) -> None:
    """Write kohya's format, with kohya's layer names."""
    layout, width = variant_of(lora.layers)
    layers = {
        kohya_name(*diffusers_path(name), layout): low_rank
        for name, low_rank in lora.layers.items()
    }
    ranks = {low_rank.rank for low_rank in layers.values()}
    alphas = {low_rank.alpha for low_rank in layers.values()}
    version = layout.versions.get(width or 0)
    modules = {layer.network_module for layer in layers.values()}
    facts = {
        "ss_network_module": modules.pop() if len(modules) == 1 else "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_network_args": "{}",
    }
    if version:
        facts |= {"ss_v2": str(version == "sd_v2"), "ss_base_model_version": version}
    Lora(layers, {**facts, **lora.metadata}, lora.name).save_kohya(path, dtype, {})


def save_diffusers(lora: Lora, path: Path, dtype: torch.dtype) -> None:
    """Write diffusers' format, which `load_lora_weights` loads at the trained strength.

    In every version of diffusers: alpha is folded into `lora_B`.
    """
    low_rank = {name: one for name, one in lora.layers.items() if isinstance(one, LowRank)}
    if len(low_rank) < len(lora.layers):
        kinds = ", ".join(sorted({one.kind for one in lora.layers.values()}))
        raise ArtifactError(f"{lora.name}: diffusers' format holds plain LoRA only, not {kinds}")
    layout, width = variant_of(lora.layers)
    if layout.file_format == "diffusers":
        lora.save(path, dtype, {})
        return
    is_linear = lora.metadata.get("ss_v2") == "True" or width in layout.linear_widths
    tensors = diffusers_tensors(low_rank, dtype, is_linear)
    metadata = {
        "modelspec.title": lora.name,
        **{key: value for key, value in lora.metadata.items() if key.startswith("modelspec.")},
        **adapter_metadata(low_rank),
    }
    content = serialize(tensors, {**metadata, **hashes(tensors, metadata)})
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))
