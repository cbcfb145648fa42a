"""Base models and artifacts in recipes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from inference.config.images import Faults
from inference.recipe import MISSING

EMBEDDED = ("picto", "picto-motion")
"""Base models that are shipped with Limner."""


@dataclass
class BaseModelConfig:
    """The base model to train on or to generate with."""

    paths: ClassVar[tuple[str, ...]] = ("path", "vae")

    path: str = "picto"
    """`picto` (shipped with Limner, like `picto-motion` for clips), a diffusers folder, a hub id
    such as `org/model`, or a single file (`.safetensors` or `.ckpt`) as A1111 opens it."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Only for hub ids."""
    variant: str | None = None
    """Which weight files of the folder to load, for example `fp16` for `*.fp16.safetensors`."""
    clip_skip: int = 1
    """A1111's Clip skip: 1 uses the text encoder's last layer, 2 the one before it. For SDXL, 1 is
    the next-to-last layer, as it was trained (A1111 always uses that one, whatever its Clip skip).
    """
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """Prediction type of a single file, if the file does not specify it or specifies it wrongly.
    Folders specify it themselves."""
    vae: str | None = None
    """Another VAE, for image models: a file (`.safetensors`, `.vae.pt`, `.ckpt`; also a checkpoint
    that contains one) or a diffusers folder. null is the base model's own VAE."""
    vae_precision: Literal["fp32", "fp16", "bf16"] | None = "fp32"
    """Data type of the VAE; null uses that of the other weights. SDXL's VAE overflows in fp16, as
    its config says (`force_upcast`): null then means fp32, and fp16 is rejected."""
    quantization: Literal["fp8", "int8", "nf4"] | None = None
    """Pack the large layers of the UNet or transformer, to generate and to train what leaves them
    as they are (LoRAs, also known as QLoRA, embeddings, hypernetworks): `fp8` into 8 bits per
    weight, convolutions too; `int8` into 8, and `nf4` into 4, linear layers only and by
    bitsandbytes. Less memory, not faster, and slightly different images
    (docs/base_models.md#quantized-bases)."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """`sdpa` is fused attention, which is fast; `eager` computes it in single operations (on CPUs
    its backward pass is several times faster in bf16)."""

    @property
    def moves_by_layer(self) -> bool:
        """Return whether layers can be moved one by one; those of bitsandbytes cannot."""
        return self.quantization in (None, "fp8")

    def faults(self) -> Faults:
        if not self.path.strip():
            yield "path", "must name a base model: `picto`, a diffusers folder, or a hub id"
        if self.vae is not None and not self.vae.strip():
            yield "vae", "must name a file or folder; null is the base model's own VAE"
        if self.clip_skip < 1:
            yield "clip_skip", f"must be at least 1 (the last layer), got {self.clip_skip}"

    def idle(self) -> Faults:
        is_single_file = self.path.lower().endswith((".safetensors", ".ckpt"))
        if self.revision is not None and self.path in EMBEDDED:
            problem = f"has no effect: {self.path} comes with Limner and is not on a hub"
            yield "revision", problem
        elif self.revision is not None and is_single_file:
            yield "revision", "has no effect: a single file is not on a hub"
        if self.variant is not None and is_single_file:
            yield "variant", "has no effect: a single file is read as it is"
        if self.prediction_type is not None and not is_single_file:
            yield (
                "prediction_type",
                "has no effect: the folder's scheduler_config.json specifies it",
            )


ADAPTERS: dict[str, str | type] = {"lora": "inference.artifacts.adapters.low_rank:LowRank"}
"""The known adapters: classes, or `module:Class`; `inference.artifacts.adapter` adds others."""


def clips_have_their_own_vae(config: BaseModelConfig) -> Faults:
    """Yield an error if a recipe for clips asks for another VAE."""
    if config.vae is not None:
        problem = f"is for image models, and a video model has its own; got {config.vae!r}"
        yield "base_model.vae", problem


@dataclass
class ArtifactConfig:
    """A trained artifact and its strength."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = MISSING
    """The artifact's file or folder. Its type is detected from its content."""
    strength: float = 1.0
    """0 is the base model, 1 the strength it was trained at."""
