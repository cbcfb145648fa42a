"""The identity of a run: a random id, and a hash of what decides its result.

Every manifest of a run holds both, so that the checkpoints and artifacts of two runs are not mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from inference.files import sha256
from inference.models import resolve_path, vae_file

SAFE_TO_CHANGE = (
    "name",
    "max_train_steps",
    "saving",
    "metadata",
    "sampling",
    "guards",
    "memory.activation_offload",
    "memory.blocks_to_swap",
    "memory.fused_backward",
    "memory.offload",
    "parallel.context",
    "log_every_n_steps",
    "parallel.cpu_offload",
    "parallel.strategy",
    "validation.every_n_steps",
    "data.cache_dir",
    "data.num_workers",
    "data.streaming.disk_gib",
    "data.streaming.folder",
    "output_dir",
    "resume",
    "overwrite",
    "plugins",
)
"""Keys that may change when a run is resumed."""

DATA_PATHS = (
    "data.path",
    "data.concepts_list",
    "data.masks.path",
    "data.concepts.*.instance_data_dir",
    "data.concepts.*.class_data_dir",
    "data.subsets.*.path",
    "data.subsets.*.metadata_file",
    "data.subsets.*.masks.path",
    "validation.path",
)
"""Keys of folders and files with data, which may be moved: their contents are compared."""

CONTEXT = "parallel.context"
"""Key of the number of processes that compute the same examples together."""

BASE_PATH, VAE_PATH = "base_model.path", "base_model.vae"

ACCUMULATION = ("gradient_accumulation_steps", "stages.*.gradient_accumulation_steps")
"""Keys that may change with the number of processes."""

RUN_ID, RESULT_HASH, BASE_FINGERPRINT = "run_id", "result_hash", "base_model_fingerprint"
"""Keys of environment.json and of manifests."""

FINGERPRINTS = ("dataset_fingerprint", "validation_fingerprint", BASE_FINGERPRINT)
"""Facts about data and base model that decide the result."""

WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "*.safetensors", "*.bin")
"""Files of a part's weights; those of the first pattern that any has are loaded."""

NOT_LOADED = "safety_checker"


def is_safe(key: str) -> bool:
    """Return whether a key may change when a run is resumed."""
    return any(f"{key}.".startswith(f"{safe}.") for safe in SAFE_TO_CHANGE)


def is_one_of(key: str, patterns: Iterable[str]) -> bool:
    """Return whether a key matches a pattern, in which `*` stands for a name."""
    return any(
        fnmatchcase(key, pattern) and key.count(".") == pattern.count(".") for pattern in patterns
    )


def same_place(one: Any, two: Any) -> bool:
    """Return whether two paths lead to the same place: `x/` is `x`, also as an absolute path."""
    return (
        isinstance(one, str)
        and isinstance(two, str)
        and os.path.realpath(one) == os.path.realpath(two)
    )


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= leaves(inner, f"{key}.{name}" if key else str(name))
    return found


def new_identity(recipe_yaml: str, facts: Mapping[str, Any], processes: int) -> dict[str, str]:
    """Return the id of a new run, and the hash of what decides its result.

    Args:
        recipe_yaml: the resolved recipe; its paths, its name and keys that may change do not count,
            and accumulation counts over all processes with examples of their own.
        facts: the fingerprints of data and base model.
        processes: the number of processes.
    """
    deciding = {}
    values = leaves(yaml.safe_load(recipe_yaml))
    data_size = max(1, processes // values.get(CONTEXT, 1))
    for key, value in values.items():
        if is_safe(key) or is_one_of(key, (*DATA_PATHS, BASE_PATH, VAE_PATH)):
            continue
        is_count = is_one_of(key, ACCUMULATION) and isinstance(value, int)
        deciding[key] = value * data_size if is_count else value
    known = {key: facts.get(key) for key in FINGERPRINTS}
    text = json.dumps([deciding, known], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {RUN_ID: secrets.token_hex(8), RESULT_HASH: digest}


def base_fingerprint(recipe: Any) -> str | None:
    """Return a hash of the weights of a recipe's base model; None if they are not here.

    Of a folder, the weights of all parts count; a VAE that replaces the model's own counts too.

    Args:
        recipe: the values of a recipe.yaml.
    """
    values = leaves(recipe)
    own, vae = model_fingerprint(values), values.get(VAE_PATH)
    file = vae_file(vae) if isinstance(vae, str) else None
    if own is None or file is None:
        return own
    return hashlib.sha256(f"{own} {sha256(file)}".encode()).hexdigest()


def model_fingerprint(values: Mapping[str, Any]) -> str | None:
    """Return a hash of a base model's weights, given a recipe's values by dotted key."""
    if not isinstance(path := values.get(BASE_PATH), str):
        return None
    place = Path(resolve_path(path))
    if not place.exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            index = try_to_load_from_cache(
                path, "model_index.json", revision=values.get("base_model.revision")
            )
        except HFValidationError:  # not the name of a repository
            return None
        if not isinstance(index, str):
            return None
        place = Path(index).parent
    if not place.is_dir():
        return sha256(place)
    digest = hashlib.sha256()
    variant = values.get("base_model.variant")
    for part in sorted(one for one in place.iterdir() if one.is_dir()):
        for file in weights_of(part, variant) if part.name != NOT_LOADED else ():
            digest.update(f"{file.relative_to(place).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def weights_of(part: Path, variant: str | None) -> list[Path]:
    """Return the files with the weights of a model's part; several if they are sharded."""
    patterns = [f"*.{variant}.safetensors", f"*.{variant}.bin"] if variant else []
    for pattern in (*patterns, *WEIGHTS):
        if found := sorted(part.glob(pattern)):
            return found
    return []
