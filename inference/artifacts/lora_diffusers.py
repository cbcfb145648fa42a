"""LoRA files in diffusers' format, which is also how LoRAs of video models are kept.

diffusers keeps alpha in the metadata `lora_adapter_metadata`, as peft's options for each part, and
without it takes the rank for alpha (`diffusers/loaders/lora_base.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inference.artifacts.lora_paths import diffusers_path
from inference.artifacts.low_rank import LowRank

ADAPTERS = "lora_adapter_metadata"
"""The key of a file's metadata under which diffusers looks for alpha."""


def diffusers_tensors(
    layers: Mapping[str, LowRank], dtype: torch.dtype, is_linear: bool = False
) -> dict[str, Tensor]:
    """The tensors of a file under diffusers' names, e.g. `transformer.….to_q.lora_A.weight`.

    Args:
        layers: by kohya's names.
        dtype: number format of the file.
        is_linear: proj_in and proj_out of a UNet are linear, though kohya's are convolutions.
    """
    tensors: dict[str, Tensor] = {}
    for name, low_rank in layers.items():
        part, module = diffusers_path(name)
        halves = (low_rank.lora_A.weight, low_rank.lora_B.weight)
        for half, weight in zip("AB", halves, strict=True):
            value = weight.detach()
            if is_linear and module.endswith((".proj_in", ".proj_out")):
                value = value.reshape(value.shape[:2])
            tensors[f"{part}.{module}.lora_{half}.weight"] = value.to("cpu", dtype).contiguous()
    return tensors


def adapter_metadata(layers: Mapping[str, LowRank]) -> dict[str, str]:
    """The metadata through which diffusers loads the layers, named by kohya, at their alpha."""
    parts: dict[str, dict[str, LowRank]] = {}
    for name, low_rank in layers.items():
        part, module = diffusers_path(name)
        parts.setdefault(part, {})[module.removeprefix("text_model.")] = low_rank
    options = {
        f"{part}.{key}": value
        for part, of_part in parts.items()
        for key, value in _peft_options(of_part).items()
    }
    return {"format": "pt", ADAPTERS: json.dumps(options, sort_keys=True)}


def _peft_options(layers: Mapping[str, LowRank]) -> dict[str, Any]:
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
