"""Metadata of LoRA files: kohya's `ss_*`, the hashes A1111 uses, and `modelspec.*` 1.0.1.

Sources: sd-scripts `train_network.py` and `library/train_util.py` (function
precalculate_safetensors_hashes); github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from inference.files import old_hash, read_header, serialize
from inference.models import all_families, family_of
from inference.runtime import DrawWarning

if TYPE_CHECKING:
    from inference.models import DiffusionModel


def base_model_version(base: DiffusionModel) -> str:
    """Return the name of a model's version in LoRA files: kohya's, e.g. `sd_v1`.

    Published models without a name from kohya use their own, e.g. `cogvideox-5b-i2v`; others
    are `limner_<name or width>`.
    """
    return family_of(base).version(base)


def warn_of_other_family(name: str, metadata: Mapping[str, str], base: DiffusionModel) -> None:
    """Warn if a LoRA was trained for another published family than the base model's.

    CogVideoX 5B and 1.5, or models with different prediction types, have the same shapes.
    Names that are not from `base_model_version` are ignored.
    """
    said, own = metadata.get("ss_base_model_version"), base_model_version(base)
    known = {version for family in all_families() for version in family.architectures}
    if said in known and own in known and said != own:
        warnings.warn(
            f"{name}: was made for {said}, and this base model ({base.path}) is {own}. It fits by "
            "its shapes, but what it learned may not show, or be another thing here",
            DrawWarning,
            stacklevel=3,
        )


def made_upon(base: DiffusionModel) -> dict[str, str | None]:
    """Return the base model as A1111 names it: its short hash and its name."""
    from inference.models import model_hash, model_name

    known_by = model_hash(base)
    return {
        "sd_checkpoint": known_by[:10] if known_by else None,
        "sd_checkpoint_name": model_name(base),
    }


def base_facts(base: DiffusionModel) -> dict[str, str]:
    """Return kohya's hashes of the base model, and its licence, as far as they are known.

    Of a folder, the hashes are those of the denoiser's file.
    """
    from inference.models import model_hash, weights_path

    found, path = {}, weights_path(base)
    if path is not None:
        found["ss_sd_model_hash"] = old_hash(path)
        found["ss_new_sd_model_hash"] = str(model_hash(base))
    if licence := licence_of(base):
        found["modelspec.license"] = licence
    return found


def licence_of(base: DiffusionModel) -> str | None:
    """Return what a single file says is its licence, else that of its published architecture."""
    path = Path(base.path)
    if path.suffix.lower() == ".safetensors" and path.is_file():
        said = read_header(path).get("__metadata__", {}).get("modelspec.license")
        if said:
            return said
    return family_of(base).licenses.get(base_model_version(base))


def lora_metadata(base: DiffusionModel, rank: int, alpha: float, dropout: float) -> dict[str, str]:
    """Return the metadata of every LoRA: kohya's minimum set and the model specification."""
    version = base_model_version(base)
    architecture = family_of(base).architectures.get(version, version)
    return {
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": "{}",
        "ss_network_dropout": str(dropout or None),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        **family_of(base).metadata(base),
    }


def hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Return `sshs_model_hash` (of the weights; A1111 shows 12 digits) and `sshs_legacy_hash`.

    Both are computed for the file with only the `ss_` metadata.
    """
    raw = serialize(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    start = 8 + int.from_bytes(raw[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(raw[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
    }
