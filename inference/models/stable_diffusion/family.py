"""The family of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from inference.config import BaseModelConfig
from inference.models.family import CastPart, Match, ModelFamily, PartLayout, SingleFile
from inference.models.lora_layout import LoraLayout
from inference.models.stable_diffusion.detect import (
    CONV_IN,
    FAMILIES,
    MODEL,
    ON_HUB,
    TRAINED_PARTS,
    UNET,
    ZERO_SNR,
    family_of,
    has_own_sizes,
    looks_like_checkpoint,
    prediction_type_of,
    published_on_hub,
    settings_of,
)
from inference.models.stable_diffusion.lora import LAYOUTS, VERSIONS, layout_for, layout_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from inference.files import TensorFile
    from inference.models.base import DiffusionModel
    from inference.models.model_files import ModelFiles
    from inference.models.stable_diffusion.model import BaseModel

SGM = "https://github.com/Stability-AI/generative-models"
"""The implementation whose layer names SDXL's LoRAs use."""


INPAINTING = ", inpainting: its UNet also reads a mask and the masked image"
"""What `inspect` adds to a model of nine channels."""


class CompVisFile(SingleFile):
    """`.safetensors` and `.ckpt` as A1111, Forge and ComfyUI open them."""

    def recognizes(self, keys: Iterable[str]) -> bool:
        return looks_like_checkpoint(keys)

    def holds_denoiser(self, keys: Iterable[str]) -> bool:
        return any(key.startswith(UNET) for key in keys)

    def read_parts(self, path: Path) -> tuple[dict[str, nn.Module], str | None]:
        from inference.models.stable_diffusion.single_file import read_model

        model = read_model(path, only_trained=True)
        return model.modules, model.prediction_type

    def write(
        self,
        path: Path,
        base: DiffusionModel,
        cast_part: CastPart,
        metadata: Mapping[str, str],
        trained: Collection[str] | None = None,
        weights_of: Callable[[nn.Module], dict[str, Tensor]] | None = None,
    ) -> list[str]:
        from dataclasses import replace

        from torch import nn

        from inference.models.stable_diffusion.single_file import parts_of
        from inference.models.stable_diffusion.single_file_writer import write_model

        parts = replace(
            parts_of(cast("BaseModel", base)), trained=None if trained is None else tuple(trained)
        )
        return write_model(path, parts, cast_part, metadata, weights_of or nn.Module.state_dict)

    def inspect(self, file: TensorFile) -> dict[str, str]:
        family = family_of(file.shapes)
        settings = settings_of(file.metadata)
        sizes = ", of sizes of its own" if has_own_sizes(settings) else ""
        sizes += INPAINTING if file.shapes.get(CONV_IN, (0, 4))[1] == 9 else ""
        says = prediction_type_of(family, file.shapes, file.metadata)
        facts = {
            "family": f"{family.title} ({family.architecture}){sizes}",
            "prediction type": says or "does not say; set base_model.prediction_type",
        }
        schedule = settings.get("noise_schedule", {})
        if ZERO_SNR in file.shapes or schedule.get("rescale_betas_zero_snr"):
            facts["terminal SNR"] = "zero"
        for part, prefix in family.layout.items():
            numbers = [math.prod(s) for key, s in file.shapes.items() if key.startswith(prefix)]
            facts[part] = f"{sum(numbers):,} parameters" if numbers else "none in this file"
        if any(key.startswith("model_ema.") for key in file.shapes):
            facts["averages"] = "model_ema, passed over"
        return facts

    def inspect_metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        trained = {}
        if TRAINED_PARTS in metadata:
            trained = {"trained": metadata[TRAINED_PARTS].replace(",", ", ")}
        hidden = (MODEL, TRAINED_PARTS)
        return trained | {k: v for k, v in sorted(metadata.items()) if k not in hidden}


class StableDiffusion(ModelFamily):
    """Models with a 2D UNet, one or two CLIP encoders and an image VAE."""

    name = "stable_diffusion"
    title = "Stable Diffusion"
    draws = "pictures"
    artifacts = frozenset({"lora", "hypernetwork", "checkpoint", "embedding"})
    denoiser_name = "unet"
    parts: ClassVar = {
        "unet": PartLayout(
            "diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",
            ("attention_head_dim", "num_attention_heads", "act_fn", "norm_num_groups"),
            "a model of pictures",
        ),
        "text_encoder": PartLayout(
            "transformers:CLIPTextModel",
            ("hidden_act", "num_attention_heads", "feed_forward_proj"),
            "a model of pictures",
        ),
        "text_encoder_2": PartLayout(
            "transformers:CLIPTextModelWithProjection",
            ("hidden_act", "num_attention_heads"),
            "SDXL",
        ),
        "vae": PartLayout(
            "diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",
            ("act_fn", "norm_num_groups", "latent_channels", "temporal_compression_ratio"),
            "a model of pictures",
        ),
    }
    single_file = CompVisFile()
    published: ClassVar = {key: one.title for key, one in FAMILIES.items()}
    architectures: ClassVar = {
        "sd_v1": "stable-diffusion-v1",
        "sd_v1_v": "stable-diffusion-v1",
        "sd_v2": "stable-diffusion-v2-512",
        "sd_v2_v": "stable-diffusion-v2-768-v",
        "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
        "sdxl_refiner_v1-0": "stable-diffusion-xl-v1-refiner",
    }
    licenses: ClassVar = {
        "sd_v1": "CreativeML Open RAIL-M",
        "sd_v1_v": "CreativeML Open RAIL-M",
        "sd_v2": "CreativeML Open RAIL++-M",
        "sd_v2_v": "CreativeML Open RAIL++-M",
        "sdxl_base_v1-0": "CreativeML Open RAIL++-M",
        "sdxl_refiner_v1-0": "CreativeML Open RAIL++-M",
    }
    lora_layouts = LAYOUTS

    def detect(self, files: ModelFiles) -> Match | None:
        if files.is_single_file:
            return Match.LAYOUT
        if "StableDiffusion" in str(files.index.get("_class_name")):
            return Match.NAMED
        if not files.is_folder and published_on_hub(files.path):
            return Match.NAMED
        is_here = "unet" in files.index if files.index else files.has("unet")
        return Match.LAYOUT if is_here else None

    def load(
        self, config: BaseModelConfig, precision: str, device: torch.device | str
    ) -> DiffusionModel:
        from inference.models.stable_diffusion.loading import load_base_model

        return load_base_model(config, precision, device)

    def skeleton(self, files: ModelFiles, precision: str) -> DiffusionModel:
        from inference.models.stable_diffusion.loading import picture_skeleton

        return picture_skeleton(files, precision)

    def known_offline(self) -> tuple[str, ...]:
        return tuple(ON_HUB)

    def part_dtype(
        self, base: DiffusionModel, config: BaseModelConfig, precision: str, part: str
    ) -> torch.dtype:
        from inference.models.stable_diffusion.loading import frozen_dtype

        return frozen_dtype(base, config, precision, part)

    def lora_layout(self, base: DiffusionModel) -> LoraLayout:
        return layout_of(base.parts)

    def lora_variant(self, names: Mapping[str, object], width: int | None) -> LoraLayout:
        return layout_for(names, width)

    def version(self, base: DiffusionModel) -> str:
        """Return kohya's name, e.g. `sd_v1`."""
        width = base.denoiser.config.cross_attention_dim
        if width not in VERSIONS:
            return f"limner_{base.path if base.path.isidentifier() else width}"
        is_marked = base.prediction_type == "v_prediction" and "text_encoder_2" not in base.parts
        return VERSIONS[width] + ("_v" if is_marked else "")

    def metadata(self, base: DiffusionModel) -> dict[str, str]:
        model = cast("BaseModel", base)
        is_velocity = model.prediction_type == "v_prediction"
        return {
            "ss_v2": str(self.version(model).startswith("sd_v2")),
            "ss_clip_skip": str(model.clip_skip if model.clip_skip > 1 else None),
            "modelspec.prediction_type": "v" if is_velocity else "epsilon",
            "modelspec.implementation": SGM if model.has_pooled_prompts else "diffusers",
            "modelspec.resolution": f"{model.resolution}x{model.resolution}",
            "modelspec.encoder_layer": str(-model.prompt_layer),
        }

    def inspect(self, folder: Path, index: Mapping[str, Any]) -> dict[str, str]:
        from inference.files import read_json

        unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
        noise = read_json(folder / "scheduler" / "scheduler_config.json")
        facts = {
            "kind": "base model (diffusers folder)",
            "pipeline": str(index.get("_class_name", "unknown")),
            "layout": describe_layout(folder, unet),
            "prediction type": str(noise.get("prediction_type", "epsilon")),
            "timesteps": str(noise.get("num_train_timesteps", "unknown")),
        }
        if "sample_size" in unet and "block_out_channels" in vae:
            factor = 2 ** (len(vae["block_out_channels"]) - 1)
            side = unet["sample_size"] * factor
            facts["resolution"] = f"{side}x{side} ({factor} pixels per latent)"
        return facts


def describe_layout(path: Path, unet: Mapping[str, Any]) -> str:
    """Describe the layout: SD 1.x/2.x or SDXL, and the width of the UNet's prompt embeddings."""
    width = unet.get("cross_attention_dim", "unknown")
    kind = INPAINTING if unet.get("in_channels") == 9 else ""
    if not (path / "text_encoder_2").is_dir():
        return f"SD 1.x/2.x: one text encoder, prompts of width {width}{kind}"
    if not (path / "text_encoder").is_dir():
        shown = f"prompts of width {width}, pooled prompt, sizes and aesthetic score"
        return f"SDXL refiner: only text_encoder_2, {shown}{kind}"
    return f"SDXL: two text encoders, prompts of width {width}, pooled prompt and sizes{kind}"


FAMILY = StableDiffusion()
