"""Write base models as single files (`.safetensors`) that A1111, Forge and ComfyUI open."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.files import write_tensors
from inference.models.stable_diffusion.detect import (
    FAMILIES,
    MODEL,
    NOISE_SCHEDULE,
    TRAINED_PARTS,
    VELOCITY,
    ZERO_SNR,
    Config,
    Family,
    has_own_sizes,
    modelspec,
)
from inference.models.stable_diffusion.keys import is_clips, to_file, vocabulary_of
from inference.models.stable_diffusion.ldm_config import (
    CONFIGS,
    config_path,
    remove_config,
    write_config,
)
from inference.models.stable_diffusion.single_file import ModelParts
from inference.runtime import InputError

IGNORED = ("sample_size", "upcast_attention", "force_upcast", "in_channels")
"""Settings that differ within a family; none changes a layer, except for the input channels of
inpainting models, which the file's weights show."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

Format = Callable[[str, dict[str, Tensor]], dict[str, Tensor]]
"""Part and its weights -> the weights in the dtype of the file."""


def family_for(parts: Mapping[str, nn.Module]) -> Family:
    """Return the family in whose layout parts are written.

    Decided by the text encoders: OpenCLIP's (SD 2.x) use the exact GELU, CLIP's an approximation.
    """
    if "text_encoder_2" in parts:
        return FAMILIES["sdxl" if "text_encoder" in parts else "sdxl_refiner"]
    text: Any = parts["text_encoder"]
    return FAMILIES["sd1" if text.config.hidden_act == "quick_gelu" else "sd2"]


def write_model(
    path: Path,
    model: ModelParts,
    in_format: Format,
    metadata: Mapping[str, str],
    weights_of: Callable[[nn.Module], dict[str, Tensor]] = nn.Module.state_dict,
) -> list[str]:
    """Write all parts as one `.safetensors`, atomically; where A1111 needs it, a config beside it.

    Args:
        path: the file.
        model: its parts.
        in_format: converts each part's weights to the dtype to write.
        metadata: overrides the model's own.
        weights_of: the weights of a module by name.

    Returns:
        What the user must know to open it in other programs.

    Raises:
        InputError: a part is missing, or another config is where A1111 looks for one.
    """
    family = family_for(model.modules)
    missing = [part for part in family.layout if part not in model.modules]
    if missing:
        raise InputError(f"{path}: a single file needs every part; {', '.join(missing)} missing")
    tensors: dict[str, Tensor] = {}
    for part, module in model.modules.items():
        weights = {key: value.detach() for key, value in weights_of(module).items()}
        tensors |= to_file(part, in_format(part, weights), family.layout)
    settings = own_settings(model, family)
    unet, vae = _config(model.modules["unet"]), _config(model.modules["vae"])
    resolution = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    prediction_type = model.prediction_type or "epsilon"
    title = metadata.get("ss_output_name", path.stem)
    is_family = not has_own_sizes(settings)
    said = modelspec(family, prediction_type, resolution, title, is_family)
    if settings:
        said[MODEL] = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    if model.trained is not None:
        said[TRAINED_PARTS] = ",".join(sorted(model.trained))
    has_zero_snr = bool(model.noise_schedule.get("rescale_betas_zero_snr"))
    is_velocity = prediction_type == "v_prediction"
    tensors |= marks(family, is_velocity, has_zero_snr)
    needs_config = is_family and is_velocity and family.key in CONFIGS
    if needs_config:
        write_config(path, family.key, unet["in_channels"], has_zero_snr)
    else:
        remove_config(path)
    write_tensors(path, tensors, {**said, **metadata})
    return notes(path, settings, needs_config, has_zero_snr)


def marks(family: Family, is_velocity: bool, has_zero_snr: bool) -> dict[str, Tensor]:
    """Return the empty tensors by which ComfyUI and Forge know v-prediction and zero SNR.

    SD 2.x is recognized without the first one, and for SD 1.x no program looks for it.
    """
    names = {VELOCITY: is_velocity and family.key.startswith("sdxl"), ZERO_SNR: has_zero_snr}
    return {name: torch.zeros(0) for name, applies in names.items() if applies}


def notes(
    path: Path, settings: Mapping[str, Any], has_config: bool, has_zero_snr: bool
) -> list[str]:
    """Return what the user must know to open a file in other programs."""
    if has_own_sizes(settings):
        sizes = "its sizes are those of no SD 1.x, SD 2.x or SDXL"
        return [f"{sizes}: only Limner knows how to open it"]
    found = []
    if "noise_schedule" in settings:
        found.append(
            "its noise schedule is not that of Stable Diffusion: other programs open it, and draw "
            "with the usual one"
        )
    if has_config:
        found.append(f"A1111 needs {config_path(path)} beside it, to draw with v-prediction")
    if has_zero_snr:
        found.append("in A1111 choose the noise schedule 'Zero Terminal SNR' in the settings")
    return found


def own_settings(model: ModelParts, family: Family) -> dict[str, Any]:
    """Return the settings that the family does not imply; empty for one of its models.

    Zero terminal SNR is no such setting: a tensor of the file marks it.
    """
    has_clips_words = all(is_clips(tokenizer) for tokenizer in model.tokenizers.values())
    ignored = (*IGNORED, *TOKEN_IDS) if has_clips_words else IGNORED
    configs = {part: _config(module) for part, module in model.modules.items()}
    own: dict[str, Any] = {}
    for part, said in configs.items():
        usual = {**_defaults(part), **family.configs[part]}
        unused = ("projection_dim",) if part == "text_encoder" else ()
        compared = usual.keys() - {*ignored, *unused}
        if any(said.get(key) != usual[key] for key in compared):
            own["configs"] = configs
    schedule = {
        key: value
        for key, value in model.noise_schedule.items()
        if key.startswith(("beta_", "num_train", "trained_"))
    }
    usual = {"trained_betas": None, **NOISE_SCHEDULE}
    if any(usual.get(key) != value for key, value in schedule.items()):
        own["noise_schedule"] = schedule
    if not has_clips_words:
        own["tokenizers"] = {
            name: {
                "vocabulary": vocabulary_of(tokenizer)[0],
                "merges": vocabulary_of(tokenizer)[1],
                "start": tokenizer.bos_token,
                "end": tokenizer.eos_token,
                "pad": tokenizer.pad_token,
            }
            for name, tokenizer in model.tokenizers.items()
        }
    return own


def _config(module: nn.Module) -> Config:
    """Return a part's settings as JSON would return them, without those of the library."""
    library: Any = module
    if hasattr(module.config, "to_dict"):  # transformers
        said = library.config.to_dict()
        said = {key: said[key] for key in FAMILIES["sdxl"].configs["text_encoder"]}
    else:
        said = {key: value for key, value in library.config.items() if not key.startswith("_")}
    return json.loads(json.dumps(said))


def _defaults(part: str) -> Config:
    """Return diffusers' defaults for settings that are not given."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    if part not in classes:
        return {}
    parameters = inspect.signature(classes[part].__init__).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps(given))
