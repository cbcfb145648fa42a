"""LoRA files from kohya's format into diffusers' and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from inference.artifacts.adapters.base import Adapter
from inference.artifacts.adapters.lora import Lora
from inference.artifacts.adapters.lora_formats import adapter_metadata, diffusers_tensors
from inference.artifacts.adapters.lora_keys import diffusers_path, kohya_name
from inference.artifacts.adapters.low_rank import LowRank
from inference.files import serialize, write_atomically
from inference.runtime import ArtifactError

VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}
"""Width of the prompt states -> kohya's word for the family."""

Layers = Mapping[str, Adapter]
"""By kohya's names."""


def context_width(layers: Layers) -> int | None:
    """Width of the prompt states that a LoRA's attention layers read; None if it has none."""
    widths = Counter(
        width
        for name, layer in layers.items()
        if name.startswith("lora_unet_")
        and name.endswith(("attn2_to_k", "attn2_to_v"))
        and (width := layer.input_width)
    )
    return widths.most_common(1)[0][0] if widths else None


def has_two_text_encoders(layers: Layers) -> bool:
    """Whether a LoRA is one of SDXL: by what its attention reads, else by its names."""
    width = context_width(layers)
    if width in VERSIONS:
        return VERSIONS[width].startswith("sdxl")
    return any(
        name.startswith(("lora_te1_", "lora_te2_", "lora_unet_input_", "lora_unet_output_"))
        for name in layers
    )


def save_kohya(lora: Lora, path: Path, dtype: torch.dtype) -> None:
    """Writes kohya's format, with the names of the layers that kohya gives them."""
    is_sdxl = has_two_text_encoders(lora.layers)
    layers = {
        kohya_name(*diffusers_path(name), has_two_text_encoders=is_sdxl): low_rank
        for name, low_rank in lora.layers.items()
    }
    ranks = {low_rank.rank for low_rank in layers.values()}
    alphas = {low_rank.alpha for low_rank in layers.values()}
    version = VERSIONS.get(context_width(layers) or 0)
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
    """Writes diffusers' format, which `load_lora_weights` reads at the trained strength."""
    low_rank = {name: one for name, one in lora.layers.items() if isinstance(one, LowRank)}
    if len(low_rank) < len(lora.layers):
        kinds = ", ".join(sorted({one.kind for one in lora.layers.values()}))
        raise ArtifactError(f"{lora.name}: diffusers' format holds plain LoRA only, not {kinds}")
    if lora.is_for_video:
        lora.save(path, dtype, {})
        return
    width = context_width(lora.layers)
    is_linear = lora.metadata.get("ss_v2") == "True" or width in (1024, 2048)
    tensors = diffusers_tensors(low_rank, dtype, is_linear)
    metadata = {
        **{key: value for key, value in lora.metadata.items() if key.startswith("modelspec.")},
        **adapter_metadata(low_rank),
    }
    content = serialize(tensors, metadata)
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))
