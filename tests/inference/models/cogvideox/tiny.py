"""Tiny CogVideoX parts of random weights, as diffusers' own tests have them."""

from __future__ import annotations

from typing import Any

import torch

VAE: dict[str, Any] = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 4,
    "scaling_factor": 0.7,
}
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 2,
    "text_embed_dim": 32,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 16,
    "use_rotary_positional_embeddings": True,
}


def tiny_vae(**changes: Any) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLCogVideoX(**VAE | changes).eval()


def tiny_transformer(**changes: Any) -> Any:
    """Rotary positions, 2 heads of 16; random AdaLN, which is zero in none of its parts."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CogVideoXTransformer3DModel(**TRANSFORMER | changes).eval()


def good_schedule(**changes: object) -> dict[str, object]:
    """What 5B's scheduler_config.json says."""
    return {
        "_class_name": "CogVideoXDPMScheduler",
        "_diffusers_version": "0.31.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": 1.0,
        "timestep_spacing": "trailing",
    } | changes
