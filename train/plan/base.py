"""A base model without weights: what a plan asks for sizes and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from inference.config import BaseModelConfig
from inference.models import DTYPES, DiffusionModel, is_single_file, resolve_path
from inference.models.cogvideox import (
    FAMILIES,
    TEXT_ENCODER,
    VideoFamily,
    VideoModel,
    family_on_hub,
    is_video_model,
)
from inference.models.stable_diffusion import SIZE_CONDITIONS, BaseModel
from inference.runtime import BaseModelError


def skeleton(config: BaseModelConfig, precision: str) -> DiffusionModel:
    """The model that a recipe names, all of it on the meta device; no weight is read.

    The configs are those of a folder, of the hub's files on this disk, of a single file's header,
    or of a published CogVideoX by its hub id.

    Args:
        config: what the recipe says of the base model.
        precision: number format of a run.

    Raises:
        BaseModelError: nothing is there to read, or its parts do not belong together.
    """
    from inference.models.cogvideox import check_parts as check_video_parts
    from inference.models.stable_diffusion import check_parts

    path = resolve_path(config.path)
    base: DiffusionModel
    if is_single_file(path):
        from inference.models.stable_diffusion import read_base_model

        base = read_base_model(config, DTYPES[precision], without_weights=True).to("meta")
    elif is_local_video_model(config) or family_on_hub(path):
        base = video_skeleton(Configs(config), DTYPES[precision])
    else:
        base = picture_skeleton(Configs(config), DTYPES[precision])
    if isinstance(base, VideoModel):
        check_video_parts(base)
    elif isinstance(base, BaseModel):
        check_parts(base, config.path)
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    base.source = config
    return base


def is_local_video_model(config: BaseModelConfig) -> bool:
    """Whether the files on this disk are those of a CogVideoX."""
    if Path(resolve_path(config.path)).is_dir():
        return is_video_model(config)
    return Configs(config).file("transformer", "config.json") is not None


class Configs:
    """The JSON files of a diffusers folder, of the hub's copy on this disk, or of a family."""

    def __init__(self, config: BaseModelConfig) -> None:
        self.config = config
        self.path = resolve_path(config.path)
        self.is_folder = Path(self.path).is_dir()

    def file(self, part: str, name: str) -> Path | None:
        """Where it lies; None where it is not on this disk."""
        if self.is_folder:
            file = Path(self.path) / part / name
            return file if file.is_file() else None
        if not self.is_hub_id:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.path, f"{part}/{name}", revision=self.config.revision)
        return Path(found) if isinstance(found, str) else None

    @property
    def is_hub_id(self) -> bool:
        """Whether the path looks like org/model."""
        return self.path.count("/") == 1 and not Path(self.path).is_absolute()

    @property
    def family(self) -> VideoFamily | None:
        """The published model that a hub id names; None for a folder."""
        return None if self.is_folder else family_on_hub(self.path)

    def read(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """The settings of a part.

        Raises:
            BaseModelError: they are not on this disk, and not known otherwise; or damaged.
        """
        file, family = self.file(part, name), self.family
        if file is not None:
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise BaseModelError(f"{file}: cannot be read as JSON: {error}") from error
        if family is not None:
            return {
                "transformer": family.transformer,
                "vae": family.vae,
                "scheduler": family.noise_schedule,
                "text_encoder": TEXT_ENCODER,
            }[part]
        if self.is_folder:
            raise BaseModelError(f"base_model.path: {self.config.path!r}: {part}/{name} is missing")
        titles = ", ".join(one.title for one in FAMILIES.values())
        raise BaseModelError(
            f"base_model.path: {self.config.path!r} is not on this disk, and a plan reads nothing "
            f"from the hub. Known without files are {titles} (by their hub ids); of others get the "
            f"settings: hf download {self.config.path} --include '*.json' '*.txt' '*.model'"
        )


def video_skeleton(configs: Configs, dtype: torch.dtype) -> VideoModel:
    """A CogVideoX on the meta device, without a tokenizer."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    schedule = configs.read("scheduler", "scheduler_config.json")
    with torch.device("meta"):
        transformer: Any = CogVideoXTransformer3DModel.from_config(configs.read("transformer"))
        vae: Any = AutoencoderKLCogVideoX.from_config(configs.read("vae"))
        text = T5EncoderModel(T5Config(**configs.read("text_encoder")))
    return VideoModel(
        path=configs.config.path,
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=text,
        vae=vae,
        transformer=transformer,
        alphas_cumprod=torch.zeros(int(schedule.get("num_train_timesteps", 1000))),
        prediction_type=str(schedule.get("prediction_type", "epsilon")),
        noise_schedule=dict(schedule),
        dtype=dtype,
    )


def picture_skeleton(configs: Configs, dtype: torch.dtype) -> BaseModel:
    """A Stable Diffusion on the meta device, with its tokenizers."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    if configs.is_folder or not configs.is_hub_id:
        from inference.models.stable_diffusion import check_layout

        check_layout(Path(configs.path), configs.config.path)

    def tokenizer(part: str) -> CLIPTokenizer:
        file = configs.file(part, "tokenizer_config.json")
        if file is None:
            configs.read(part, "tokenizer_config.json")
        assert file is not None
        return CLIPTokenizer.from_pretrained(file.parent)

    schedule = configs.read("scheduler", "scheduler_config.json")
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(configs.read("unet"))
        vae: Any = AutoencoderKL.from_config(configs.read("vae"))
        text = CLIPTextModel(CLIPTextConfig(**configs.read("text_encoder")))
    base = BaseModel(
        path=configs.config.path,
        tokenizer=tokenizer("tokenizer"),
        text_encoder=text,
        vae=vae,
        unet=unet,
        alphas_cumprod=torch.zeros(int(schedule.get("num_train_timesteps", 1000))),
        prediction_type=str(schedule.get("prediction_type", "epsilon")),
        noise_schedule=dict(schedule),
        dtype=dtype,
        clip_skip=configs.config.clip_skip,
    )
    if unet.config.addition_embed_type == SIZE_CONDITIONS:
        with torch.device("meta"):
            second = CLIPTextConfig(**configs.read("text_encoder_2"))
            base.text_encoder_2 = CLIPTextModelWithProjection(second)
        base.tokenizer_2 = tokenizer("tokenizer_2")
    return base
