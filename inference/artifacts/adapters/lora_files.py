"""Read LoRA files, and the folders of peft's adapters (peft 0.21 `PeftModel.save_pretrained`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inference.artifacts.adapters.lora_names import KINDS_OF_PEFT
from inference.files import ADAPTER_FILES, read_json, read_tensors
from inference.models import ADAPTER_CONFIG as CONFIG
from inference.models import all_families, part_names
from inference.runtime import ArtifactError

METADATA = "lora_adapter_metadata"
"""The key of a file's metadata in which diffusers keeps such a config, by parts."""
OPTIONS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""Options of the config that scale a layer."""
CHANGING = ("corda", "loftq", "olora", "pissa")
"""Beginnings of `init_lora_weights` that also change the base model's weights."""


def is_adapter_folder(path: Path) -> bool:
    """Return whether a folder is an adapter of peft, or has one for each part of a model."""
    return path.is_dir() and bool(adapter_folders(path))


def adapter_folders(path: Path) -> list[Path]:
    """Return the folders with an adapter: the folder itself, else those in it."""
    if (path / CONFIG).is_file():
        return [path]
    return sorted(inner for inner in path.iterdir() if (inner / CONFIG).is_file())


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a LoRA, by the names of its program.

    An adapter's config becomes metadata as diffusers writes it.

    Raises:
        InputError: a file cannot be read.
        ArtifactError: an adapter is of a kind that is not supported, or two are for the same part.
    """
    if path.is_dir():
        folders = adapter_folders(path)
    elif path.name.lower() in ADAPTER_FILES and (path.parent / CONFIG).is_file():
        folders = [path.parent]
    else:
        return read_tensors(path)
    tensors: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    for folder in folders:
        named, own = read_adapter(folder)
        if twice := sorted(tensors.keys() & named.keys()):
            raise ArtifactError(
                f"{path}: {len(folders)} adapters for the same layers ({twice[0]}); name one of "
                f"them: {', '.join(str(one) for one in folders)}"
            )
        tensors |= named
        options |= own
    return tensors, {"format": "pt", METADATA: json.dumps(options, sort_keys=True)}


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an adapter's tensors, and the options of its config, both by the part's name.

    Raises:
        ArtifactError: its weights are missing, or it is of a kind that is not supported.
    """
    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not files:
        raise ArtifactError(f"{folder}: has {CONFIG}, and no {' or '.join(ADAPTER_FILES)}")
    settings = read_json(folder / CONFIG)
    check_config(folder / CONFIG, settings)
    part = adapted_part(folder, settings)
    begin = f"{part}." if part else ""
    tensors, _ = read_tensors(files[0])
    named = {
        begin + key if key.startswith("base_model.") else key: tensor
        for key, tensor in tensors.items()
    }
    return named, {f"{begin}{name}": settings[name] for name in OPTIONS if name in settings}


def check_config(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise ArtifactError for an adapter that is no plain LoRA."""
    kind = str(settings.get("peft_type", "LORA"))
    if kind != "LORA":
        name = KINDS_OF_PEFT.get(kind, kind)
        raise ArtifactError(f"{file}: peft_type {kind}: {name} cannot be read; only LoRA can")
    if settings.get("use_dora"):
        raise ArtifactError(f"{file}: use_dora: DoRA cannot be read; only plain LoRA can")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGING):
        raise ArtifactError(
            f"{file}: init_lora_weights {start!r} also changed the base model's weights, which are "
            "not in this folder; convert it in peft (path_initial_model_for_weight_conversion)"
        )


def adapted_part(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the part of a model that an adapter is for; None if only its layers' names show it."""
    mapping = settings.get("auto_mapping")
    wanted = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    for family in all_families():
        for part, layout in family.parts.items():
            if layout.target.rpartition(":")[2] == wanted:
                return part
    return folder.name if folder.name in part_names() else None
