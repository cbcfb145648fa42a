"""The family of CogVideoX: 2B, 5B and 1.5, from text, from a first frame, and Fun-Control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from inference.config import BaseModelConfig
from inference.models.cogvideox.detect import FAMILIES, family_of, family_on_hub
from inference.models.cogvideox.lora import LORA
from inference.models.family import Match, ModelFamily, PartLayout
from inference.models.lora_layout import LoraLayout
from inference.runtime import InputError

if TYPE_CHECKING:
    import torch

    from inference.models.base import DiffusionModel
    from inference.models.model_files import ModelFiles

A_VIDEO_MODEL = "a video model"


class CogVideoX(ModelFamily):
    """Diffusers folders with a 3D transformer, a T5 encoder and a video VAE."""

    name = "cogvideox"
    title = "CogVideoX"
    draws = "clips"
    artifacts = frozenset({"lora", "checkpoint"})
    denoiser_name = "transformer"
    parts: ClassVar = {
        "transformer": PartLayout(
            "diffusers.models.transformers.cogvideox_transformer_3d:CogVideoXTransformer3DModel",
            (
                "attention_head_dim", "patch_size", "patch_size_t", "sample_width",
                "sample_height", "use_rotary_positional_embeddings",
                "spatial_interpolation_scale", "temporal_interpolation_scale",
            ),
            A_VIDEO_MODEL,
        ),
        "text_encoder": PartLayout(
            "transformers:T5EncoderModel",
            ("hidden_act", "num_attention_heads", "feed_forward_proj"),
            A_VIDEO_MODEL,
        ),
        "vae": PartLayout(
            "diffusers.models.autoencoders.autoencoder_kl_cogvideox:AutoencoderKLCogVideoX",
            ("act_fn", "norm_num_groups", "latent_channels", "temporal_compression_ratio"),
            A_VIDEO_MODEL,
        ),
    }  # fmt: skip
    single_file = None
    published: ClassVar = {name: one.title for name, one in FAMILIES.items()}
    architectures: ClassVar = {name: name for name in FAMILIES}
    licenses: ClassVar = {
        name: "Apache-2.0" if name == "cogvideox-2b" else "CogVideoX License" for name in FAMILIES
    }
    lora_layouts = (LORA,)

    def detect(self, files: ModelFiles) -> Match | None:
        if files.is_single_file:
            return None
        if "CogVideoX" in str(files.index.get("_class_name")):
            return Match.NAMED
        if not files.is_folder and family_on_hub(files.path):
            return Match.NAMED
        is_here = "transformer" in files.index if files.index else files.has("transformer")
        return Match.LAYOUT if is_here else None

    def load(
        self, config: BaseModelConfig, precision: str, device: torch.device | str
    ) -> DiffusionModel:
        from inference.models.cogvideox.loading import load_video_model

        return load_video_model(config, precision, device)

    def skeleton(self, files: ModelFiles, precision: str) -> DiffusionModel:
        from inference.models.cogvideox.loading import video_skeleton

        return video_skeleton(files, precision)

    def known_offline(self) -> tuple[str, ...]:
        return tuple(self.published.values())

    def part_dtype(
        self, base: DiffusionModel, config: BaseModelConfig, precision: str, part: str
    ) -> torch.dtype:
        from inference.models.base import DTYPES

        return DTYPES[(config.vae_precision or precision) if part == "vae" else precision]

    def lora_layout(self, base: DiffusionModel) -> LoraLayout:
        return LORA

    def lora_variant(self, names: Mapping[str, object], width: int | None) -> LoraLayout:
        return LORA

    def version(self, base: DiffusionModel) -> str:
        """Return the published name, e.g. `cogvideox-5b-i2v`; kohya has none for video models."""
        config = base.denoiser.config
        if known := family_of(config):
            return known.name
        width = config.num_attention_heads * config.attention_head_dim
        return f"limner_{base.path if base.path.isidentifier() else width}"

    def metadata(self, base: DiffusionModel) -> dict[str, str]:
        config, factor = base.denoiser.config, base.vae_scale_factor
        known = family_of(config)
        own = config.sample_width * factor, config.sample_height * factor
        width, height = known.size if known else own
        is_velocity = base.prediction_type == "v_prediction"
        return {
            "ss_v2": "False",
            "modelspec.prediction_type": "v" if is_velocity else "epsilon",
            "modelspec.implementation": "diffusers",
            "modelspec.resolution": f"{width}x{height}",
        }

    def inspect(self, folder: Path, index: Mapping[str, Any]) -> dict[str, str]:
        from inference.files import read_json

        parts = ("transformer", "vae")
        transformer, vae = (read_json(folder / part / "config.json") for part in parts)
        noise = read_json(folder / "scheduler" / "scheduler_config.json")
        expected = FAMILIES["cogvideox-5b"].transformer
        if missing := [key for key in expected if key not in transformer]:
            raise InputError(f"{folder / 'transformer/config.json'}: {', '.join(missing)} missing")
        known = family_of(transformer)
        factor = 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)
        size = (transformer["sample_width"] * factor, transformer["sample_height"] * factor)
        width, height = known.size if known else size
        channels = transformer["in_channels"], vae.get("latent_channels")
        learns_from = "text and an image" if channels[0] != channels[1] else "text"
        return {
            "kind": "base model of clips (diffusers folder)",
            "pipeline": str(index.get("_class_name", "unknown")),
            "layout": f"CogVideoX ({known.title if known else 'of sizes of its own'}): "
            f"{learns_from}",
            "prompts": f"{transformer['max_text_seq_length']} tokens of width "
            f"{transformer['text_embed_dim']}",
            "prediction type": str(noise.get("prediction_type", "epsilon")),
            "timesteps": str(noise.get("num_train_timesteps", "unknown")),
            "made for": f"{transformer['sample_frames']} frames of {width}x{height}",
        }


FAMILY = CogVideoX()
