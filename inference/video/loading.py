"""Loading a CogVideoX model from a diffusers folder or the hub, and its checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from inference.base_model import DTYPES, BaseModelError, is_single_file, resolve_path
from inference.base_model_loading import load_base_model, made_ready
from inference.config import BaseModelConfig
from inference.diffusion_model import DiffusionModel
from inference.video.model import VideoModel
from inference.video.noise_schedule import check_schedule
from inference.video.quantization import quantize

INDEX = "model_index.json"
TRANSFORMER = "CogVideoXTransformer3DModel"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def load_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> DiffusionModel:
    """A model of pictures or of clips, as the files say.

    Raises:
        BaseModelError: nothing is there, a part is missing, or its files cannot be read.
    """
    load = load_video_model if is_video_model(config) else load_base_model
    return load(config, precision, device)


def is_video_model(config: BaseModelConfig) -> bool:
    """Whether a folder, or what lies on the hub under this name, is of the CogVideoX layout.

    Raises:
        BaseModelError: its model_index.json is damaged.
    """
    path = resolve_path(config.path)
    if is_single_file(path):
        return False
    file = Path(path) / INDEX
    if not Path(path).is_dir() and path.count("/") == 1:
        file = Path(on_hub(config, path) or file)
    if not file.is_file():
        return (Path(path) / "transformer").is_dir()
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{file}: cannot be read as JSON: {error}") from error
    return "transformer" in index or "CogVideoX" in str(index.get("_class_name"))


def on_hub(config: BaseModelConfig, path: str) -> str | None:
    """The model_index.json of a hub id on this disk; None where it is not to be had."""
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(path, INDEX, revision=config.revision)
    except (OSError, ValueError):  # told, with what helps, when the parts are read
        return None


def load_video_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> VideoModel:
    """Loads every part, frozen and in evaluation mode.

    Raises:
        BaseModelError: a part is missing or cannot be read, or the model is of another kind.
    """
    path = resolve_path(config.path)
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
        raise BaseModelError(
            f"base_model.path: {config.path!r} cannot be loaded: {error}"
        ) from error
    check_parts(model)
    vae_dtype = DTYPES[config.vae_precision or precision]
    if model.vae.dtype != vae_dtype:
        model.vae.to(vae_dtype)
    if config.quantization is not None:
        quantize(model, config.quantization, DTYPES[precision])
    return made_ready(model, config).to(device)


def read_parts(
    config: BaseModelConfig, path: str, is_local: bool, dtype: torch.dtype
) -> VideoModel:
    """The parts as they are in a folder or on the hub; the VAE in fp32.

    Raises:
        OSError: a part is missing, or its files cannot be read.
        ValueError: a part's config is not understood.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from transformers import AutoTokenizer, T5EncoderModel

    def read(part_class: Any, part: str, **options: Any) -> Any:
        return part_class.from_pretrained(path, subfolder=part, **source, **options)

    source = {"revision": config.revision, "local_files_only": is_local}
    weights = {"variant": config.variant, "dtype": dtype}
    noise_scheduler = read(CogVideoXDDIMScheduler, "scheduler")
    # From these keys alone: a folder may name the DPM scheduler, whose class they suit as well.
    return VideoModel(
        path=config.path,
        tokenizer=read(AutoTokenizer, "tokenizer"),
        text_encoder=read(T5EncoderModel, "text_encoder", **weights),
        vae=read(AutoencoderKLCogVideoX, "vae", **{**weights, "dtype": torch.float32}),
        transformer=read(CogVideoXTransformer3DModel, "transformer", **weights),
        alphas_cumprod=noise_scheduler.alphas_cumprod.float(),
        prediction_type=noise_scheduler.config.prediction_type,
        noise_schedule=dict(noise_scheduler.config),
        dtype=dtype,
    )


def check_parts(model: VideoModel) -> None:
    """Raises InputError unless the parts that were loaded belong together."""
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
