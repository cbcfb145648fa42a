"""The Stable Diffusion families of single files: their architectures, and how to detect them.

Settings as in the config.json files of the models' diffusers folders (stable-diffusion-v1-5,
stable-diffusion-2-base, stable-diffusion-2-1, stable-diffusion-xl-base-1.0,
stable-diffusion-xl-refiner-1.0); words for them as in kohya's sd-scripts
`library/sai_model_spec.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inference.models.stable_diffusion.keys import LAYOUTS, Layout
from inference.runtime import InputError

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""
Config = dict[str, Any]

_SD1_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD2_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
_SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_REFINER_UNET = {
    "sample_size": 128,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}
_VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_SDXL_VAE = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}


def _text(width: int, layers: int, heads: int, act: str, projection: int) -> Config:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
        "projection_dim": projection,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


_CLIP_L = _text(768, 12, 12, "quick_gelu", 768)
_CLIP_H = _text(1024, 23, 16, "gelu", 512)  # the last of its 24 layers is never used
_CLIP_BIG_G = _text(1280, 32, 20, "gelu", 1280)

NOISE_SCHEDULE: Config = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The noise schedule of every family; `prediction_type` is the model's own."""


@dataclass(frozen=True)
class Family:
    """A family of base models with the same layers."""

    key: str
    """Its layout in LAYOUTS."""
    title: str
    architecture: str
    """`modelspec.architecture`; SD 2.x has another one for v-prediction."""
    configs: Mapping[str, Config]
    """Settings of each part, by their names in diffusers and transformers."""

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.key]

    @property
    def context(self) -> int:
        """Return the width of the prompt embeddings that the UNet attends to."""
        return self.configs["unet"]["cross_attention_dim"]


FAMILIES = {
    family.key: family
    for family in (
        Family(
            "sd1",
            "SD 1.x",
            "stable-diffusion-v1",
            {"unet": _SD1_UNET, "vae": _VAE, "text_encoder": _CLIP_L},
        ),
        Family(
            "sd2",
            "SD 2.x",
            "stable-diffusion-v2-512",
            {"unet": _SD2_UNET, "vae": _VAE, "text_encoder": _CLIP_H},
        ),
        Family(
            "sdxl",
            "SDXL",
            "stable-diffusion-xl-v1-base",
            {
                "unet": _SDXL_UNET,
                "vae": _SDXL_VAE,
                "text_encoder": _CLIP_L,
                "text_encoder_2": _CLIP_BIG_G,
            },
        ),
        Family(
            "sdxl_refiner",
            "SDXL's refiner",
            "stable-diffusion-xl-v1-refiner",
            {"unet": _REFINER_UNET, "vae": _SDXL_VAE, "text_encoder_2": _CLIP_BIG_G},
        ),
    )
}
SD2_VELOCITY = "stable-diffusion-v2-768-v"


@dataclass(frozen=True)
class PublishedModel:
    """A model on the hub, whose settings are known without its files."""

    family: Family
    prediction_type: str = "epsilon"
    sample_size: int | None = None
    """Side of the latents that it was trained on; by default its family's."""
    is_inpainting: bool = False
    """Whether its UNet also reads a mask and the latents of the masked image."""

    @property
    def settings(self) -> dict[str, Config]:
        """Return the settings of each part, and of its scheduler, by part."""
        parts = {part: dict(config) for part, config in self.family.configs.items()}
        if self.sample_size is not None:
            parts["unet"]["sample_size"] = self.sample_size
        if self.is_inpainting:
            parts["unet"]["in_channels"] = 9
        return {**parts, "scheduler": NOISE_SCHEDULE | {"prediction_type": self.prediction_type}}


_VELOCITY = PublishedModel(FAMILIES["sd2"], "v_prediction", 96)
ON_HUB = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": PublishedModel(FAMILIES["sd1"]),
    "stabilityai/stable-diffusion-2-1-base": PublishedModel(FAMILIES["sd2"]),
    "stabilityai/stable-diffusion-2-1": _VELOCITY,
    "stabilityai/stable-diffusion-xl-base-1.0": PublishedModel(FAMILIES["sdxl"]),
    "stabilityai/stable-diffusion-xl-refiner-1.0": PublishedModel(FAMILIES["sdxl_refiner"]),
    "stable-diffusion-v1-5/stable-diffusion-inpainting": PublishedModel(
        FAMILIES["sd1"], is_inpainting=True
    ),
    "stabilityai/stable-diffusion-2-inpainting": PublishedModel(
        FAMILIES["sd2"], is_inpainting=True
    ),
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": PublishedModel(
        FAMILIES["sdxl"], is_inpainting=True
    ),
}
"""By their hub ids, in lower case."""


def published_on_hub(path: str) -> PublishedModel | None:
    """Return the published model of a hub id, or None."""
    return ON_HUB.get(path.lower())


MODEL = "limner.model"
"""Metadata of a file whose model has not the sizes, the words or the noise schedule of a known
family: its settings, as JSON."""
SIZES = ("configs", "tokenizers")
"""Settings without which another program cannot build the model."""
VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors that mark v-prediction and zero terminal SNR, as in NoobAI's files; ComfyUI and
Forge look for them."""
TRAINED_PARTS = "limner.parts"
"""Metadata: the trained parts, separated by commas."""

UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
OTHER_INPUTS = {
    8: "InstructPix2Pix or another model that also sees a picture",
    7: "an upscaler",
    5: "a model that also sees depth",
}
"""Channels of a UNet's input -> its type, if neither 4 nor the 9 of an inpainting model."""

OTHER_MODELS = {
    "double_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    "control_model.": "a ControlNet",
    "noise_augmentor.": "SD 2.1 unCLIP",
}
"""Parts of the tensor names of other models."""


class FamilyError(InputError):
    """A checkpoint of an unsupported type."""


def family_of(shapes: Shapes) -> Family:
    """Return the family of a single file, by the names and shapes of its tensors.

    Raises:
        FamilyError: it is another model, or one for other inputs.
    """
    for sign, title in OTHER_MODELS.items():
        if any(sign in key for key in shapes):
            raise FamilyError(f"this is {title}; {expected()}")
    if not looks_like_checkpoint(shapes):
        names = ", ".join(list(shapes)[:3]) or "none"
        raise FamilyError(f"no checkpoint by its names ({names}); {expected()}")
    channels = shapes.get(CONV_IN, (0, 4))[1]
    if channels not in (4, 9):
        what = OTHER_INPUTS.get(channels, "another model")
        raise FamilyError(
            f"its UNet takes {channels} channels: this is {what}; expected 4, or 9 for inpainting"
        )
    begins = {
        prefix for prefix in _text_prefixes() if any(key.startswith(prefix) for key in shapes)
    }
    for family in reversed(FAMILIES.values()):
        if all(family.layout[part] in begins for part in family.layout if "text" in part):
            return family
    if begins and begins != {"conditioner.embedders.0.transformer."}:
        raise FamilyError(f"its text encoders ({', '.join(sorted(begins))}) are of no known family")
    width = next((shapes[key][1] for key in shapes if key.endswith("attn2.to_k.weight")), 0)
    by_width = {family.context: family for family in FAMILIES.values()}
    if begins or not width or width not in by_width:
        raise FamilyError(f"no text encoder by which to tell its family; {expected()}")
    return by_width[width]


def expected() -> str:
    """Return the list of supported models, for messages."""
    titles = ", ".join(family.title for family in FAMILIES.values())
    return f"expected a checkpoint of {titles} (names such as {CONV_IN})"


def _text_prefixes() -> set[str]:
    known = {prefix for layout in LAYOUTS.values() for prefix in layout.values()}
    return known - {UNET, "first_stage_model."}


def looks_like_checkpoint(keys: Iterable[str]) -> bool:
    """Return whether some tensor has a name as in a single-file checkpoint."""
    prefixes = tuple({prefix for layout in LAYOUTS.values() for prefix in layout.values()})
    return any(key.startswith(prefixes) for key in keys)


def prediction_type_of(
    family: Family, keys: Iterable[str], metadata: Mapping[str, str]
) -> str | None:
    """Return a file's `epsilon` or `v_prediction`; None for an SD 2.x without the information.

    From its metadata, else by the tensor `v_pred`, else by the family: SD 1.x and SDXL predict
    noise.
    """
    said = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key")
    words = {"v": "v_prediction", "epsilon": "epsilon", "v_prediction": "v_prediction"}
    if said in words:
        return words[said]
    if metadata.get("modelspec.architecture") == SD2_VELOCITY or VELOCITY in keys:
        return "v_prediction"
    return None if family.key == "sd2" else "epsilon"


def settings_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that a file's family does not imply, from its metadata.

    Raises:
        FamilyError: they cannot be read.
    """
    try:
        settings = json.loads(metadata.get(MODEL, "{}"))
    except ValueError as error:
        raise FamilyError(f"its metadata {MODEL!r} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise FamilyError(f"its metadata {MODEL!r} is no mapping")
    return settings


def has_own_sizes(settings: Mapping[str, Any]) -> bool:
    """Return whether settings describe a model that other programs cannot build."""
    return any(key in settings for key in SIZES)


def modelspec(
    family: Family, prediction_type: str, resolution: int, title: str, is_family: bool
) -> dict[str, str]:
    """Return `modelspec.*` 1.0.1 of a whole model, in kohya's words.

    Args:
        family: its layout.
        prediction_type: `epsilon` or `v_prediction`.
        resolution: side of its images in pixels.
        title: its name.
        is_family: False for a model of other sizes in the family's layout.
    """
    is_velocity = prediction_type == "v_prediction"
    architecture = family.architecture
    if family.key == "sd2" and is_velocity:
        architecture = SD2_VELOCITY
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture if is_family else f"limner-{family.key}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if is_velocity else "epsilon",
    }
