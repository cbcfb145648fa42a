"""Metadata of LoRA files: kohya's `ss_*`, the hashes A1111 knows them by, and `modelspec.*` 1.0.1.

Sources: sd-scripts `train_network.py` and `library/train_util.py` (function
precalculate_safetensors_hashes); github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from inference.files import serialize
from inference.models.cogvideox import FAMILIES, VideoModel, family_of
from inference.models.stable_diffusion import BaseModel
from inference.runtime import DrawWarning

if TYPE_CHECKING:
    from inference.models import DiffusionModel

VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}
"""Width of the prompt states -> kohya's `ss_base_model_version`; for v-prediction `_v` is added,
but not to SDXL's."""

SGM = "https://github.com/Stability-AI/generative-models"
"""The implementation whose names the layers of SDXL's LoRAs have."""

ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v1_v": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2-512",
    "sd_v2_v": "stable-diffusion-v2-768-v",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
}


def base_model_version(base: DiffusionModel) -> str:
    """The word of kohya for the family, e.g. `sd_v1`; others: `limner_<name or context width>`.

    Of video models, for which kohya has none, the published name, e.g. `cogvideox-5b-i2v`.
    """
    if base.denoiser_name == "transformer":
        family = family_of(base.denoiser.config)
        if family is not None:
            return family.name
        width = base.denoiser.config.num_attention_heads * base.denoiser.config.attention_head_dim
    else:
        width = base.denoiser.config.cross_attention_dim
        if width in VERSIONS:
            is_sdxl = "text_encoder_2" in base.parts
            is_marked = base.prediction_type == "v_prediction" and not is_sdxl
            return VERSIONS[width] + ("_v" if is_marked else "")
    return f"limner_{base.path if base.path.isidentifier() else width}"


def warn_of_other_family(name: str, metadata: Mapping[str, str], base: DiffusionModel) -> None:
    """Tells that a LoRA says it was made for another published family than the base model's.

    Those of CogVideoX 5B and 1.5, or of models that differ in what they predict, have one shape.
    Words that are not those of `base_model_version` are not understood, and say nothing.
    """
    said, own = metadata.get("ss_base_model_version"), base_model_version(base)
    known = {*ARCHITECTURES, *FAMILIES}
    if said in known and own in known and said != own:
        warnings.warn(
            f"{name}: was made for {said}, and this base model ({base.path}) is {own}. It fits by "
            "its shapes, but what it learned may not show, or be another thing here",
            DrawWarning,
            stacklevel=3,
        )


def made_upon(base: DiffusionModel) -> dict[str, str | None]:
    """The base model in A1111's words: its short hash and its name."""
    from inference.models import model_hash, model_name

    known_by = model_hash(base)
    return {
        "sd_checkpoint": known_by[:10] if known_by else None,
        "sd_checkpoint_name": model_name(base),
    }


def lora_metadata(base: DiffusionModel, rank: int, alpha: float, dropout: float) -> dict[str, str]:
    """What every LoRA says about itself: kohya's minimum set and the model specification."""
    version = base_model_version(base)
    facts = _video_facts(base) if isinstance(base, VideoModel) else _picture_facts(base)
    return {
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": "{}",
        "ss_network_dropout": str(dropout or None),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{ARCHITECTURES.get(version, version)}/lora",
        "modelspec.prediction_type": "v" if base.prediction_type == "v_prediction" else "epsilon",
        **facts,
    }


def _picture_facts(base: DiffusionModel) -> dict[str, str]:
    assert isinstance(base, BaseModel)
    return {
        "ss_clip_skip": str(base.clip_skip if base.clip_skip > 1 else None),
        "modelspec.implementation": SGM if base.has_two_text_encoders else "diffusers",
        "modelspec.resolution": f"{base.resolution}x{base.resolution}",
        "modelspec.encoder_layer": str(-base.prompt_layer),
    }


def _video_facts(base: VideoModel) -> dict[str, str]:
    family, factor = family_of(base.config), base.vae_scale_factor
    own = base.config.sample_width * factor, base.config.sample_height * factor
    width, height = family.size if family else own
    return {
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{width}x{height}",
    }


def hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """`sshs_model_hash` (of the weights; A1111 shows its first 12 digits) and `sshs_legacy_hash`.

    Both are taken from the file as it would be with only the `ss_` metadata.
    """
    raw = serialize(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    start = 8 + int.from_bytes(raw[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(raw[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
    }
