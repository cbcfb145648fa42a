"""The five published CogVideoX models as data: the configs of their parts.

Sources: Yang et al. 2024 (arXiv 2408.06072); `sat/configs` of github.com/zai-org/CogVideo;
diffusers' `scripts/convert_cogvideox_to_diffusers.py`, whose settings are kept where SAT's differ
(226 tokens also for CogVideoX 1.5, which SAT trains with 224).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
"""T5Config of T5 v1.1 XXL (Raffel et al. 2020, arXiv 1910.10683), the text encoder of all five
models."""

_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "temporal_compression_ratio": 4,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
    "invert_scale_latents": False,
}
_TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "num_layers": 42,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "max_text_seq_length": 226,
    "attention_bias": True,
    "patch_size": 2,
    "patch_size_t": None,
    "patch_bias": True,
    "temporal_compression_ratio": 4,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "spatial_interpolation_scale": 1.875,
    "temporal_interpolation_scale": 1.0,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": False,
    "ofs_embed_dim": None,
}
_LATER: dict[str, Any] = {
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_width": 300,
    "sample_height": 300,
    "sample_frames": 81,
}
"""The differences of CogVideoX 1.5's transformer."""
_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class VideoFamily:
    """A published model: settings of its parts, as in their config.json."""

    name: str
    """As in metadata, e.g. `cogvideox-5b-i2v`."""
    title: str
    transformer: dict[str, Any]
    """Of a CogVideoXTransformer3DModel."""
    vae: dict[str, Any]
    """Of an AutoencoderKLCogVideoX."""
    noise_schedule: dict[str, Any]
    """Of a CogVideoXDDIMScheduler."""
    size: tuple[int, int]
    """Width and height that it was trained for, in pixels."""
    fps: int
    """Frames per second that it was trained for."""
    precision: str
    """Dtype that it was trained and is run in."""


def _family(name: str, title: str, **changes: Any) -> VideoFamily:
    is_later = changes.get("patch_size_t") == 2
    is_2b = changes.get("num_layers") == 30
    vae = {"scaling_factor": 1.15258426} if is_2b else {"invert_scale_latents": is_later}
    return VideoFamily(
        name=name,
        title=title,
        transformer={**_TRANSFORMER, **changes},
        vae={**_VAE, **vae},
        noise_schedule={**_NOISE, "snr_shift_scale": 3.0 if is_2b else 1.0},
        size=(1360, 768) if is_later else (720, 480),
        fps=16 if is_later else 8,
        precision="fp16" if is_2b else "bf16",
    )


_SINCOS = {"use_rotary_positional_embeddings": False}
_LEARNED = {"use_learned_positional_embeddings": True}

FAMILIES: dict[str, VideoFamily] = {
    one.name: one
    for one in (
        _family("cogvideox-2b", "CogVideoX-2B", num_layers=30, num_attention_heads=30, **_SINCOS),
        _family("cogvideox-5b", "CogVideoX-5B"),
        _family("cogvideox-5b-i2v", "CogVideoX-5B-I2V", in_channels=32, **_LEARNED),
        _family("cogvideox-1.5-5b", "CogVideoX1.5-5B", **_LATER),
        _family(
            "cogvideox-1.5-5b-i2v", "CogVideoX1.5-5B-I2V", in_channels=32, ofs_embed_dim=512,
            **_LATER,
        ),
    )
}  # fmt: skip
"""By name."""

_BODY = ("num_layers", "num_attention_heads", "attention_head_dim", "patch_size_t")
_INPUTS = ("in_channels", "use_learned_positional_embeddings", "ofs_embed_dim")


def family_of(transformer_config: Any) -> VideoFamily | None:
    """Return the published model that a transformer is or derives from (Fun-Control); or None.

    Args:
        transformer_config: config of a CogVideoXTransformer3DModel.
    """

    def agree(family: VideoFamily, keys: tuple[str, ...]) -> bool:
        return all(family.transformer[key] == transformer_config[key] for key in keys)

    related = [family for family in FAMILIES.values() if agree(family, _BODY)]
    same = [family for family in related if agree(family, _INPUTS)]
    return next(iter([*same, *related]), None)


def family_on_hub(path: str) -> VideoFamily | None:
    """Return the published model of a hub id (THUDM/CogVideoX-2b, …), or None."""
    owner, _, name = path.lower().partition("/")
    known = {family.title.lower(): family for family in FAMILIES.values()}
    return known.get(name) if owner in ("thudm", "zai-org") else None
