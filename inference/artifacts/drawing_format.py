"""The format in which a recipe generates, and whether exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from inference.config import AnimationRecipe, ClipsRecipe, ImagesRecipe
from inference.files import read_header
from inference.models import FACTS, resolve_path
from inference.runtime import (
    DrawWarning,
    choose_kernels,
    compute_exactly,
    computes_bf16,
    report,
    warn_of_emulation,
)

RECORDED = {"no": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
"""kohya's words in `ss_mixed_precision`."""


Drawn = ImagesRecipe | ClipsRecipe | AnimationRecipe


def prepare_drawing(recipe: Drawn, device: torch.device, is_first: bool = True) -> str:
    """Return the precision to generate in, after all warnings; set kernels as configured.

    Args:
        recipe: of any drawing; `auto` becomes fp32 on a CPU. On a GPU it becomes the precision
            that the first artifact (or the base model, if it is one) records of its training, so
            that previews are drawn again as they were; without one, what the GPU computes fast.
        device: what generates.
        is_first: whether this process prints.

    Raises:
        InputError: as `compute_exactly`; or a file that records the precision is damaged.
    """
    precision = recipe.precision
    if precision == "auto":
        precision = "fp32"
        if device.type == "cuda":
            precision, reason = chosen(recipe, device)
            if is_first:
                report("draw", f"precision: {precision}, {reason}")
    formats = {
        "precision": precision,
        "base_model.vae_precision": recipe.base_model.vae_precision,
    }
    warn_of_emulation(device, formats, DrawWarning)
    choose_kernels(recipe.speed, device, DrawWarning)
    price = compute_exactly(device, DrawWarning) if recipe.deterministic else None
    if price and is_first:
        report("draw", price)
    return precision


def chosen(recipe: Drawn, device: torch.device) -> tuple[str, str]:
    """Return the precision for a GPU, and why."""
    artifacts = [one.path for one in recipe.artifacts.values() if one is not None]
    for path in (*artifacts, recipe.base_model.path):
        if (recorded := trained_in(Path(resolve_path(path)))) is not None:
            return recorded, f"in which {Path(path).name} was trained"
    return ("bf16" if computes_bf16(device) else "fp16"), "which this GPU computes fast"


def trained_in(path: Path) -> str | None:
    """Return the precision of training that an artifact records: fp32, fp16 or bf16; else None.

    Limner's and kohya's safetensors and Limner's folders do.

    Raises:
        InputError: the file is damaged.
    """
    metadata: Mapping[str, object] = {}
    if path.suffix.lower() == ".safetensors" and path.is_file():
        metadata = read_header(path).get("__metadata__", {})
    elif (path / FACTS).is_file():
        metadata = json.loads((path / FACTS).read_text(encoding="utf-8"))["metadata"]
    return RECORDED.get(str(metadata.get("ss_mixed_precision")))
