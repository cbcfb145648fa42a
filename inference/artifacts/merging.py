"""Write base models as a folder or single file, and merge LoRAs into them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.runtime import DrawWarning, InputError

if TYPE_CHECKING:
    import torch

    from inference.artifacts.base import Attached
    from inference.models import DiffusionModel


def merge(base: DiffusionModel, text: str) -> str:
    """Add `LORA` or `LORA:STRENGTH` to the base model's weights; return its name and strength."""
    from inference.artifacts.adapters import Lora
    from inference.artifacts.base import load_artifact

    path, _, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        path, strength = text, 1.0
    if not path or Path(text).exists():
        path, strength = text, 1.0
    if not math.isfinite(strength):
        raise InputError(f"--merge: a strength is a number such as 0.8, got {number!r} in {text}")
    artifact = load_artifact(path)
    if not isinstance(artifact, Lora):
        raise InputError(
            f"--merge: {path} is of the kind {artifact.kind}; only LoRAs can be merged"
        )
    artifact.merge_into(base, strength)
    return f"{artifact.name}:{strength:g}"


def attach_all(base: DiffusionModel, attached: Attached, merges: bool) -> None:
    """Attach a recipe's artifacts to its base model.

    Args:
        base: the base model.
        attached: the artifacts with their configs.
        merges: add the LoRAs to the base model's weights instead, for good.

    Raises:
        ArtifactError: one does not fit this base model.
    """
    from inference.artifacts.adapters import Lora
    from inference.artifacts.checkpoint import Checkpoint

    if merges and any(isinstance(artifact, Checkpoint) for _, artifact in attached):
        note = "speed.merge_lora: has no effect beside a checkpoint, which replaces the weights"
        warnings.warn(note, DrawWarning, stacklevel=2)
        merges = False
    for config, artifact in attached:
        if merges and isinstance(artifact, Lora):
            artifact.merge_into(base, config.strength)
        else:
            artifact.attach(base, config.strength)


def write_file_of(
    base: DiffusionModel, path: Path, dtype: torch.dtype | None, merged: Sequence[str]
) -> list[str]:
    """Write a single file; without a dtype, in the narrowest one that rounds nothing.

    Returns:
        The report for the user.
    """
    import torch

    from inference.models import cast, compact, model_name, single_file_of, weights_of

    def in_format(part: str, weights: dict[str, Any]) -> dict[str, Any]:
        return cast(weights, dtype) if dtype else compact(weights, torch.float16)

    sources = ", ".join([model_name(base), *merged])
    metadata = {"modelspec.merged_from": sources} if merged else {}
    return single_file_of(base).write(path, base, in_format, metadata, None, weights_of)


def write_folder_of(
    base: DiffusionModel, path: Path, dtype: torch.dtype | None, merged: Sequence[str]
) -> list[str]:
    """Write a diffusers folder; without a dtype, in the narrowest one that rounds nothing."""
    import torch

    from inference.files import write_folder
    from inference.models import FACTS, write_base_model

    def write(folder: Path) -> None:
        write_base_model(folder, base, base.parts if dtype else (), dtype or torch.float16, {})
        (folder / FACTS).unlink()  # that of a run; this is a base model and not a run's artifact

    write_folder(path, write)
    return []
