"""Load a CogVideoX model from a diffusers folder or the hub, and check it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inference.config import BaseModelConfig
from inference.models.base import DTYPES, cast_part, made_ready
from inference.models.cogvideox.detect import TEXT_ENCODER, family_on_hub
from inference.models.cogvideox.model import VideoModel
from inference.models.folder import load_auto, unloadable, variant_of
from inference.models.model_files import ModelFiles
from inference.models.names import resolve_path
from inference.runtime import BaseModelError, InputError

CLASSES = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
CLASS_DEFAULTS: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 3.0,
}
"""The classes' defaults if a scheduler_config.json lacks a key: wrong for every CogVideoX."""
REQUIRED: dict[str, object] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "clip_sample": False,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
}
"""The schedule that every published CogVideoX was trained with."""


def check_schedule(schedule: Mapping[str, object], where: str = "scheduler_config.json") -> None:
    """Reject the schedule of another model, and that of a scheduler made without arguments.

    Args:
        schedule: the content of the file.
        where: what the user knows the file by.

    Raises:
        InputError: names all keys that are wrong, with what they must be.
    """
    name = schedule.get("_class_name", CLASSES[0])
    if name not in CLASSES:
        raise InputError(f"{where}: _class_name is {name}; expected {' or '.join(CLASSES)}")
    faults = [
        f"{key} is {value!r}{'' if key in schedule else ' (not given)'}, must be {expected!r}"
        for key, expected in REQUIRED.items()
        if (value := _value(schedule, key)) != expected
    ]
    for key in ("num_train_timesteps", "beta_start", "beta_end", "snr_shift_scale"):
        value = _value(schedule, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            faults.append(f"{key} is {value!r}, must be a number above 0")
    if faults:
        raise InputError(
            f"{where}: no schedule of CogVideoX: {'; '.join(faults)}; take the file of the "
            "published model"
        )


def _value(schedule: Mapping[str, object], key: str) -> object:
    return schedule[key] if key in schedule else CLASS_DEFAULTS[key]


PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def load_video_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> VideoModel:
    """Load every part, frozen and in evaluation mode, with plain weights.

    Raises:
        BaseModelError: a part is missing or cannot be read, or the model is of another type.
    """
    path = resolve_path(config.path)
    if config.vae is not None:
        raise BaseModelError(
            f"base_model.vae: {config.vae!r} is for image models; {config.path!r} is a video model"
        )
    is_local = Path(path).is_dir() or path.count("/") != 1
    if is_local:
        missing = [name for name in PARTS if not (Path(path) / name).is_dir()]
        if missing:
            raise BaseModelError(
                f"base_model.path: {config.path!r} is not a diffusers folder of the CogVideoX "
                f"layout: {', '.join(missing)} missing"
            )
    try:
        model = read_parts(config, path, is_local, DTYPES[precision])
    except (OSError, ValueError) as error:
        raise unloadable(config, is_local, error) from error
    check_parts(model)
    vae_dtype = DTYPES[config.vae_precision or precision]
    if model.vae.dtype != vae_dtype:
        cast_part(model.vae, vae_dtype)
    return made_ready(model, config).to(device)


def read_parts(
    config: BaseModelConfig, path: str, is_local: bool, dtype: torch.dtype
) -> VideoModel:
    """Read the parts unchanged from a folder or the hub; the VAE in fp32.

    Raises:
        OSError: a part is missing, or its files cannot be read.
        ValueError: a part's config is not understood.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from transformers import AutoTokenizer, T5EncoderModel

    def read(part_class: Any, part: str, **options: Any) -> Any:
        if is_local and "dtype" in options:
            options["variant"] = variant_of(Path(path) / part, config.variant)
        return part_class.from_pretrained(path, subfolder=part, **source, **options)

    source = {"revision": config.revision, "local_files_only": is_local}
    weights = {"variant": config.variant, "dtype": dtype}
    noise_scheduler = read(CogVideoXDDIMScheduler, "scheduler")
    # From these keys alone: a folder may name the DPM scheduler, whose class they suit as well.
    return VideoModel(
        path=config.path,
        tokenizer=load_auto(AutoTokenizer, path, subfolder="tokenizer", **source),
        text_encoder=read(T5EncoderModel, "text_encoder", **weights),
        vae=read(AutoencoderKLCogVideoX, "vae", **{**weights, "dtype": torch.float32}),
        transformer=read(CogVideoXTransformer3DModel, "transformer", **weights),
        alphas_cumprod=noise_scheduler.alphas_cumprod.float(),
        prediction_type=noise_scheduler.config.prediction_type,
        noise_schedule=dict(noise_scheduler.config),
        dtype=dtype,
    )


def check_parts(model: VideoModel) -> None:
    """Raise InputError unless the loaded parts belong together."""
    latents, channels = model.vae.config.latent_channels, model.config.in_channels
    if channels not in (latents, 2 * latents):
        raise BaseModelError(
            f"base_model.path: {model.path!r}: its transformer takes {channels} channels; expected "
            f"{latents}, or {2 * latents} of an image-to-video or a Fun-Control model"
        )
    width: Any = model.text_encoder.config.d_model
    if model.config.text_embed_dim != width:
        raise BaseModelError(
            f"base_model.path: {model.path!r}: its text encoder is {width} wide, and its "
            f"transformer reads {model.config.text_embed_dim}"
        )
    check_schedule(model.noise_schedule, f"base_model.path: {model.path!r}: scheduler_config.json")


def video_skeleton(files: ModelFiles, precision: str) -> VideoModel:
    """Build a CogVideoX on the meta device, without a tokenizer.

    Raises:
        BaseModelError: a config is missing, or the parts do not fit together.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    known = None if files.is_folder else family_on_hub(files.path)
    published = known and {
        "transformer": known.transformer,
        "vae": known.vae,
        "scheduler": known.noise_schedule,
        "text_encoder": TEXT_ENCODER,
    }

    def read(part: str, name: str = "config.json") -> dict[str, Any]:
        return files.read(part, name, published)

    schedule = read("scheduler", "scheduler_config.json")
    with torch.device("meta"):
        transformer: Any = CogVideoXTransformer3DModel.from_config(read("transformer"))
        vae: Any = AutoencoderKLCogVideoX.from_config(read("vae"))
        text = T5EncoderModel(T5Config(**read("text_encoder")))
    model = VideoModel(
        path=files.config.path,
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=text,
        vae=vae,
        transformer=transformer,
        alphas_cumprod=torch.zeros(int(schedule.get("num_train_timesteps", 1000))),
        prediction_type=str(schedule.get("prediction_type", "epsilon")),
        noise_schedule=dict(schedule),
        dtype=DTYPES[precision],
    )
    check_parts(model)
    return model
