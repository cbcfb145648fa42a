"""LoRA files from kohya's format into diffusers' and back.

diffusers keeps alpha in the metadata `lora_adapter_metadata`, as peft's options for each part, and
without it takes the rank for alpha (`diffusers/loaders/lora_base.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.artifacts.files import serialize
from inference.artifacts.lora import Lora
from inference.artifacts.lora_keys import kohya_name
from inference.artifacts.lora_paths import diffusers_path
from inference.artifacts.low_rank import LowRank
from inference.files import write_atomically

VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}
"""Width of the prompt states -> kohya's word for the family."""

Layers = Mapping[str, LowRank]
"""By kohya's names."""


def context_width(layers: Layers) -> int | None:
    """Width of the prompt states that a LoRA's attention layers read; None if it has none."""
    widths = Counter(
        low_rank.lora_A.weight.shape[1]
        for name, low_rank in layers.items()
        if name.startswith("lora_unet_") and name.endswith(("attn2_to_k", "attn2_to_v"))
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
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_network_args": "{}",
    }
    if version:
        facts |= {"ss_v2": str(version == "sd_v2"), "ss_base_model_version": version}
    Lora(layers, {**facts, **lora.metadata}, lora.name).save(path, dtype, {})


def save_diffusers(lora: Lora, path: Path, dtype: torch.dtype) -> None:
    """Writes diffusers' format, which `load_lora_weights` reads at the trained strength."""
    width = context_width(lora.layers)
    is_linear = lora.metadata.get("ss_v2") == "True" or width in (1024, 2048)
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[str, LowRank]] = {}
    for name, low_rank in lora.layers.items():
        part, module = diffusers_path(name)
        parts.setdefault(part, {})[module.removeprefix("text_model.")] = low_rank
        halves = (low_rank.lora_A.weight, low_rank.lora_B.weight)
        for half, weight in zip("AB", halves, strict=True):
            value = weight.detach()
            if is_linear and module.endswith((".proj_in", ".proj_out")):
                value = value.reshape(value.shape[:2])  # SD 2.x's are linear; kohya's are not
            tensors[f"{part}.{module}.lora_{half}.weight"] = value.to("cpu", dtype).contiguous()
    options = {
        f"{part}.{key}": value
        for part, layers in parts.items()
        for key, value in _peft_options(layers).items()
    }
    metadata = {
        **{key: value for key, value in lora.metadata.items() if key.startswith("modelspec.")},
        "format": "pt",
        "lora_adapter_metadata": json.dumps(options, sort_keys=True),
    }
    content = serialize(tensors, metadata)
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def _peft_options(layers: Layers) -> dict[str, Any]:
    """peft's LoraConfig of a part: the commonest rank and alpha, and where there are others."""
    rank = Counter(low_rank.rank for low_rank in layers.values()).most_common(1)[0][0]
    alpha = Counter(low_rank.alpha for low_rank in layers.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {key: one.rank for key, one in layers.items() if one.rank != rank},
        "alpha_pattern": {key: one.alpha for key, one in layers.items() if one.alpha != alpha},
        "target_modules": sorted(layers),
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
    }
