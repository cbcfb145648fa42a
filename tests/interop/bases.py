"""Base models of full depth and small width, written as Limner's folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from inference.models.stable_diffusion.model import BaseModel

LETTERS = "!abcdefghijklmnopqrstuvwxyz0123456789,.<>:-"
TEXT_LAYERS = 3
VAE_CHANNELS = (8, 16)
UNET: dict[str, Any] = {"sample_size": 8, "norm_num_groups": 8}
SD_UNET = {**UNET, "block_out_channels": (8, 16, 32, 32)}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**SD_UNET, "cross_attention_dim": 32, "attention_head_dim": 2},
    "sd2": {
        **SD_UNET,
        "cross_attention_dim": 32,
        "attention_head_dim": (1, 2, 4, 4),
        "use_linear_projection": True,
    },
    "sdxl": {
        **UNET,
        "block_out_channels": (8, 16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 32 + 48,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 48,
    },
}
TEXTS: dict[str, list[dict[str, Any]]] = {
    "sd1": [{"hidden_size": 32, "hidden_act": "quick_gelu"}],
    "sd2": [{"hidden_size": 32, "hidden_act": "gelu"}],
    "sdxl": [
        {"hidden_size": 32, "hidden_act": "quick_gelu"},
        {"hidden_size": 48, "hidden_act": "gelu", "projection_dim": 48},
    ],
}


def tokenizer(pad: str) -> Any:
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, pad_token=pad)


SD2_WIDTH = 1024
"""Width of the prompts, by which a LoRA of SD 2.x is known."""


def make_parts(family: str, width: int | None = None) -> dict[str, Any]:
    """Random weights, tokenizers and a sampler, by the names of diffusers' folders.

    Args:
        family: of `UNETS`.
        width: that of the prompts, for a model with one text encoder.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    count = 2 * len(LETTERS) + 2
    shared = {
        "vocab_size": count,
        "intermediate_size": 64,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 2,
        "bos_token_id": count - 2,
        "eos_token_id": count - 1,
    }
    unet, texts = UNETS[family], TEXTS[family]
    if width is not None:
        unet, texts = {**unet, "cross_attention_dim": width}, [{**texts[0], "hidden_size": width}]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
                up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
                block_out_channels=VAE_CHANNELS,
                norm_num_groups=4,
                layers_per_block=2,
            ),
        }
        for number, config in enumerate(texts):
            end, kind = ("_2", CLIPTextModelWithProjection) if number else ("", CLIPTextModel)
            parts[f"text_encoder{end}"] = kind(CLIPTextConfig(**shared, **config))
            pad = "<|endoftext|>" if family == "sd1" or (family, end) == ("sdxl", "") else "!"
            parts[f"tokenizer{end}"] = tokenizer(pad)
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if family == "sd2" else "epsilon",
    )
    return parts


def make_base(family: str, prediction_type: str = "epsilon", **schedule: Any) -> BaseModel:
    """The same as a base model in memory; `schedule` are settings of the noise schedule."""
    from inference.models.stable_diffusion.model import BaseModel

    parts = make_parts(family)
    sampler = parts.pop("scheduler")
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return BaseModel(
        path=f"tiny-{family}",
        alphas_cumprod=sampler.alphas_cumprod,
        prediction_type=prediction_type,
        noise_schedule={**sampler.config, **schedule},
        dtype=torch.float32,
        **parts,
    )


def write_source(family: str, folder: Path) -> Path:
    """A folder as transformers and diffusers write it."""
    for name, part in make_parts(family, SD2_WIDTH if family == "sd2" else None).items():
        part.save_pretrained(folder / name)
    name = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return folder


def load_folder(folder: Path) -> BaseModel:
    from inference.config.models import BaseModelConfig
    from inference.models.stable_diffusion.loading import load_base_model

    return load_base_model(BaseModelConfig(path=str(folder)))
