"""What recipes say of base models and artifacts."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

from inference.config.images import Faults

EMBEDDED = ("picto", "picto-motion")
"""Base models that come with Limner."""


@dataclass
class BaseModelConfig:
    """The model that is trained upon and drawn with."""

    path: str = "picto"
    """`picto` (comes with Limner, as does `picto-motion` for clips), a diffusers folder, a hub id
    such as `org/model`, or a single file (`.safetensors` or `.ckpt`) as A1111 opens it."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Only for hub ids."""
    variant: str | None = None
    """Which weight files of the folder to take, for example `fp16` for `*.fp16.safetensors`."""
    clip_skip: int = 1
    """A1111's Clip skip: 1 takes the text encoder's last layer, 2 the one before it. In SDXL 1 is
    the layer before the last, as it was made (and as A1111 draws, whatever its Clip skip says)."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What a single file's model predicts, if the file does not say it or says it wrongly. Folders
    say it themselves."""
    vae_precision: Literal["fp32", "fp16", "bf16"] | None = "fp32"
    """Number format of the VAE; null takes that of the rest. SDXL's overflows in fp16, as its
    config says (`force_upcast`): null then means fp32 there, and fp16 is refused."""
    quantization: Literal["nf4", "int8"] | None = None
    """Video models, to train LoRAs upon (QLoRA, arXiv 2305.14314) and to draw with: `nf4` packs the
    large layers of the transformer into 4 bits a weight, `int8` into 8 (bitsandbytes). Less memory,
    not faster, and not quite the same clips."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """`sdpa` is the fast fused attention; `eager` spells it out (on CPUs its backward pass is
    several times faster in bf16)."""

    def faults(self) -> Faults:
        if not self.path.strip():
            yield "path", "must name a base model: `picto`, a diffusers folder, or a hub id"
        if self.clip_skip < 1:
            yield "clip_skip", f"must be at least 1 (the last layer), got {self.clip_skip}"

    def idle(self) -> Faults:
        is_single_file = self.path.lower().endswith((".safetensors", ".ckpt"))
        if self.revision is not None and self.path in EMBEDDED:
            told = f"has no effect: {self.path} comes with Limner and is not on a hub"
            yield "revision", told
        elif self.revision is not None and is_single_file:
            yield "revision", "has no effect: a single file is not on a hub"
        if self.variant is not None and is_single_file:
            yield "variant", "has no effect: a single file is read as it is"
        if self.prediction_type is not None and not is_single_file:
            yield "prediction_type", "has no effect: the folder's scheduler_config.json says it"


ADAPTERS: dict[str, str | type] = {"lora": "inference.artifacts.adapters.low_rank:LowRank"}
"""The known adapters: classes, or `module:Class`; `inference.artifacts.adapter` adds others."""


def pictures_are_not_quantized(config: BaseModelConfig) -> Faults:
    """The fault of a recipe that wants a quantized model of pictures."""
    if config.quantization is not None:
        why = f"{config.quantization} is of video models, which `type: clip` draws with"
        yield "base_model.quantization", why


@dataclass
class ArtifactConfig:
    """A trained artifact and how strongly it works."""

    path: str = MISSING
    """The artifact's file or folder. What it is is found out by its content."""
    strength: float = 1.0
    """0 is the base model, 1 the strength it was trained at."""
