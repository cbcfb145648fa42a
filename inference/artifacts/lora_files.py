"""What goes into LoRA files in kohya's format, and what is told of those that come in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from inference.artifacts.base import ArtifactError
from inference.artifacts.low_rank import LowRank
from inference.errors import DrawWarning


def twin_of(path: Path) -> Path:
    """Where the twin for ComfyUI lies: `NAME.comfyui.safetensors` beside `NAME.safetensors`."""
    return path.with_name(f"{path.stem}.comfyui{path.suffix}")


def kohya_tensors(layers: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file in kohya's format."""
    tensors: dict[str, Tensor] = {}
    for name, low_rank in layers.items():
        down, up = low_rank.lora_A.weight.detach(), low_rank.lora_B.weight.detach()
        if is_convolution_in_kohya(name) and down.dim() == 2:
            down, up = down[..., None, None], up[..., None, None]
        tensors[f"{name}.lora_down.weight"] = down.to("cpu", dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = up.to("cpu", dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(low_rank.alpha, dtype=torch.float32)
    return tensors


def is_convolution_in_kohya(name: str) -> bool:
    """Whether kohya's layer is a 1x1 convolution though ours may be linear.

    So it is for SD 2.x's proj_in and proj_out; SDXL's, under original names, are linear.
    """
    return name.startswith(("lora_unet_down_", "lora_unet_mid_", "lora_unet_up_")) and (
        name.endswith(("_proj_in", "_proj_out"))
    )


def check_effect(path: Path, layers: dict[str, LowRank]) -> None:
    """Raises ArtifactError for a LoRA that changes nothing or breaks everything."""
    ups = [low_rank.lora_B.weight * low_rank.scaling for low_rank in layers.values()]
    if not all(bool(up.isfinite().all()) for up in ups):
        raise ArtifactError(f"{path}: holds numbers that are not finite; its training went wrong")
    if not any(bool(up.any()) for up in ups):
        raise ArtifactError(f"{path}: changes nothing: every up half or alpha is zero")


def warn_of_alpha(path: Path, low_rank: LowRank) -> None:
    """Tells what is taken for an alpha that a file does not say."""
    rank, alpha = low_rank.rank, low_rank.alpha
    taken = f"1 is taken, as SAT does, and so 1/{rank} of the product of its halves works"
    if alpha == rank:
        taken = f"its rank, {rank}, is taken, as diffusers and VideoX-Fun do"
    warnings.warn(
        f"{path}: does not say its alpha; {taken}. Was it trained with another (DimensionX's with "
        "1), then write that into it: python -m inference.convert … --alpha ALPHA",
        DrawWarning,
        stacklevel=3,
    )
