"""Load a base model from a diffusers folder, the hub or a single file, and check it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inference.config import BaseModelConfig
from inference.models.base import DTYPES, DiffusionModel, cast_part, made_ready
from inference.models.folder import unloadable, variant_of
from inference.models.model_files import ModelFiles
from inference.models.names import is_single_file, no_model, resolve_path
from inference.models.stable_diffusion.detect import published_on_hub
from inference.models.stable_diffusion.keys import clip_tokenizer, splitting_tokenizer
from inference.models.stable_diffusion.model import SDXL_PARTS, SIZE_CONDITIONS, BaseModel
from inference.models.stable_diffusion.vae import read_vae
from inference.runtime import BaseModelError


def check_layout(folder: Path, path: str) -> None:
    """Raise BaseModelError unless the folder has all parts of the SD 1.x/2.x or SDXL layout.

    SDXL's refiner has the latter without the first text encoder.
    """
    if not folder.is_dir():
        raise no_model(path)
    layout, needed = "SD 1.x/2.x", ("unet", "vae", *FIRST_PARTS, "scheduler")
    if has_sdxl_layout(folder):
        layout, needed = "SDXL", (*needed, *SDXL_PARTS)
    if has_refiner_layout(folder):
        layout, needed = "SDXL refiner", ("unet", "vae", "scheduler", *SDXL_PARTS)
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise BaseModelError(
            f"base_model.path: {path!r} is not a diffusers folder of the {layout} layout: "
            f"{', '.join(missing)} missing"
        )


FIRST_PARTS = ("text_encoder", "tokenizer")


def has_refiner_layout(folder: Path) -> bool:
    """Return whether a folder has the second text encoder alone."""
    has_second = (folder / "text_encoder_2").is_dir()
    return has_second and not any((folder / name).is_dir() for name in FIRST_PARTS)


def has_sdxl_layout(folder: Path) -> bool:
    """Return whether a folder has a second text encoder, or a UNet that requires one.

    Raises:
        BaseModelError: the UNet's config.json is damaged.
    """
    if any((folder / name).is_dir() for name in SDXL_PARTS):
        return True
    file = folder / "unet" / "config.json"
    try:
        unet = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise BaseModelError(f"{file}: cannot be read as JSON: {error}") from error
    return unet.get("addition_embed_type") == SIZE_CONDITIONS


def check_parts(base: BaseModel, path: str) -> None:
    """Raise BaseModelError unless the loaded parts belong together."""
    if base.prediction_type not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"base_model.path: {path!r} predicts {base.prediction_type!r}; "
            "expected epsilon or v_prediction"
        )
    for name, encoder in base.text_encoders.items():
        config: Any = encoder.config
        if -base.prompt_layer > config.num_hidden_layers:
            raise BaseModelError(
                f"base_model.clip_skip: {name} has {config.num_hidden_layers} layers, and "
                f"clip_skip {base.clip_skip} asks for layer {base.prompt_layer}"
            )
    unet: Any = base.unet.config
    latents = base.vae.config.latent_channels
    if unet.in_channels != latents and not base.is_inpainting_model:
        raise BaseModelError(
            f"base_model.path: {path!r}: its UNet takes {unet.in_channels} channels; expected "
            f"{latents}, or {2 * latents + 1} of an inpainting model (others, such as "
            "InstructPix2Pix and depth models, are not known here)"
        )
    embed_type = unet.addition_embed_type
    if embed_type != (SIZE_CONDITIONS if base.has_pooled_prompts else None):
        raise BaseModelError(
            f"base_model.path: {path!r}: its UNet has addition_embed_type {embed_type!r}; expected "
            f"none (SD 1.x/2.x), or {SIZE_CONDITIONS!r} beside text_encoder_2 (SDXL)"
        )
    if base.text_encoder_2 is None or base.tokenizer_2 is None:
        return
    room = unet.projection_class_embeddings_input_dim - base.text_encoder_2.config.projection_dim
    kind, numbers = ("a refiner", 5) if base.is_refiner else ("an SDXL base model", 6)
    if room != numbers * unet.addition_time_embed_dim:
        raise BaseModelError(
            f"base_model.path: {path!r}: its UNet takes {room / unet.addition_time_embed_dim:g} "
            f"numbers besides the prompt; {kind} takes {numbers}"
        )
    if base.tokenizer.get_vocab() != base.tokenizer_2.get_vocab():
        raise BaseModelError(
            f"base_model.path: {path!r}: tokenizer and tokenizer_2 have different vocabularies; "
            "SDXL's have the same one"
        )


def frozen_dtype(
    base: DiffusionModel, config: BaseModelConfig, precision: str, part: str
) -> torch.dtype:
    """Return the dtype of a frozen part in a run of some precision.

    SDXL's VAE overflows in fp16, as its config states (`force_upcast`): it then stays in fp32
    (diffusers' StableDiffusionXLPipeline does so too).

    Raises:
        BaseModelError: the recipe requests fp16 for the VAE in spite of that.
    """
    if part != "vae":
        return DTYPES[precision]
    overflows = "text_encoder_2" in base.parts and base.vae.config.force_upcast
    if overflows and config.vae_precision == "fp16":
        raise BaseModelError(
            f"base_model.vae_precision: the VAE of {config.path!r} overflows in fp16, as its "
            "config says (force_upcast); take fp32 or bf16"
        )
    own = config.vae_precision or precision
    return DTYPES["fp32" if overflows and own == "fp16" else own]


def load_base_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> BaseModel:
    """Load every part, frozen and in evaluation mode, with plain weights.

    Raises:
        BaseModelError: the path does not exist, a part is missing, or its files cannot be read.
    """
    path = resolve_path(config.path)
    if is_single_file(path):
        from inference.models.stable_diffusion.single_file import read_base_model

        base = read_base_model(config, DTYPES[precision])
    else:
        base = read_folder(config, path, DTYPES[precision])
    if config.vae is not None:
        base.vae = read_vae(config.vae, base.vae)
    check_parts(base, config.path)
    vae_dtype = frozen_dtype(base, config, precision, "vae")
    if base.vae.dtype != vae_dtype:
        cast_part(base.vae, vae_dtype)
    return made_ready(base, config).to(device)


def read_folder(config: BaseModelConfig, path: str, dtype: torch.dtype) -> BaseModel:
    """Read the parts of a diffusers folder, or of the hub; the VAE in fp32.

    Raises:
        BaseModelError: the path does not exist, a part is missing, or its files cannot be read.
    """
    is_local = Path(path).is_dir() or path.count("/") != 1
    if is_local:
        check_layout(Path(path), config.path)
    try:
        return read_parts(config, path, is_local, dtype)
    except (OSError, ValueError) as error:
        raise unloadable(config, is_local, error) from error


def read_parts(config: BaseModelConfig, path: str, is_local: bool, dtype: torch.dtype) -> BaseModel:
    """Read the parts unchanged from a folder or the hub; the VAE in fp32.

    Raises:
        OSError: a part is missing, or its files cannot be read.
        ValueError: a part's config is not understood.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def read(part_class: Any, part: str, **options: Any) -> Any:
        if is_local and "dtype" in options:
            options["variant"] = variant_of(Path(path) / part, config.variant)
        return part_class.from_pretrained(path, subfolder=part, **source, **options)

    source = {"revision": config.revision, "local_files_only": is_local}
    weights = {"variant": config.variant, "dtype": dtype}
    noise_scheduler = read(DDPMScheduler, "scheduler")
    unet = read(UNet2DConditionModel, "unet", **weights)
    is_sdxl = unet.config.addition_embed_type == SIZE_CONDITIONS
    second = read(CLIPTokenizer, "tokenizer_2") if is_sdxl else None
    is_refiner = is_sdxl and lacks_first_encoder(ModelFiles(config))
    base = BaseModel(
        path=config.path,
        tokenizer=splitting_tokenizer(second) if is_refiner else read(CLIPTokenizer, "tokenizer"),
        text_encoder=None if is_refiner else read(CLIPTextModel, "text_encoder", **weights),
        vae=read(AutoencoderKL, "vae", **{**weights, "dtype": torch.float32}),
        unet=unet,
        alphas_cumprod=noise_scheduler.alphas_cumprod.float(),
        prediction_type=noise_scheduler.config.prediction_type,
        noise_schedule=dict(noise_scheduler.config),
        dtype=dtype,
        clip_skip=config.clip_skip,
        tokenizer_2=second,
    )
    if is_sdxl:
        base.text_encoder_2 = read(CLIPTextModelWithProjection, "text_encoder_2", **weights)
    return base


def lacks_first_encoder(files: ModelFiles) -> bool:
    """Return whether a model of the SDXL layout is a refiner, by its folder or the hub's index."""
    if files.is_folder:
        return has_refiner_layout(Path(files.path))
    return files.index.get("text_encoder", ["transformers"])[0] is None


def picture_skeleton(files: ModelFiles, precision: str) -> BaseModel:
    """Build a Stable Diffusion on the meta device, with its tokenizers.

    Raises:
        BaseModelError: a config is missing, or the parts do not fit together.
    """
    if files.is_single_file:
        from inference.models.stable_diffusion.single_file import read_base_model

        base = read_base_model(files.config, DTYPES[precision], without_weights=True).to("meta")
    else:
        base = folder_skeleton(files, DTYPES[precision])
    if files.config.vae is not None:
        base.vae = read_vae(files.config.vae, base.vae, without_weights=True)
    check_parts(base, files.config.path)
    return base


def folder_skeleton(files: ModelFiles, dtype: torch.dtype) -> BaseModel:
    """Build a model on the meta device from the files of a folder or of the hub, or as published.

    The tokenizers of published models differ in the padding alone, which a plan does not look at.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    if files.is_folder or not files.is_hub_id:
        check_layout(Path(files.path), files.config.path)
    known = None if files.is_folder else published_on_hub(files.path)
    published = known and known.settings

    def read(part: str, name: str = "config.json") -> dict[str, Any]:
        return files.read(part, name, published)

    def tokenizer(part: str) -> CLIPTokenizer:
        file = files.file(part, "tokenizer_config.json")
        if file is not None:
            return CLIPTokenizer.from_pretrained(file.parent)
        if known is None:
            files.read(part, "tokenizer_config.json")  # says what is missing
        return clip_tokenizer()

    schedule = read("scheduler", "scheduler_config.json")
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(read("unet"))
        vae: Any = AutoencoderKL.from_config(read("vae"))
    is_sdxl = unet.config.addition_embed_type == SIZE_CONDITIONS
    is_refiner = is_sdxl and not has_first_encoder(files, published)
    second = tokenizer("tokenizer_2") if is_sdxl else None
    base = BaseModel(
        path=files.config.path,
        tokenizer=splitting_tokenizer(second) if second and is_refiner else tokenizer("tokenizer"),
        text_encoder=None,
        vae=vae,
        unet=unet,
        alphas_cumprod=DDPMScheduler.from_config(schedule).alphas_cumprod.float(),
        prediction_type=str(schedule.get("prediction_type", "epsilon")),
        noise_schedule=dict(schedule),
        dtype=dtype,
        clip_skip=files.config.clip_skip,
        tokenizer_2=second,
    )
    with torch.device("meta"):
        if not is_refiner:
            base.text_encoder = CLIPTextModel(CLIPTextConfig(**read("text_encoder")))
        if is_sdxl:
            config = CLIPTextConfig(**read("text_encoder_2"))
            base.text_encoder_2 = CLIPTextModelWithProjection(config)
    return base


def has_first_encoder(files: ModelFiles, published: Mapping[str, object] | None) -> bool:
    """Return whether a model has the first text encoder; SDXL's refiner has not."""
    if published is not None:
        return "text_encoder" in published
    return files.has("text_encoder")
