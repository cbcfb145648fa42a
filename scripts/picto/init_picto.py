"""Write an untrained `picto`.

    python -m scripts.picto.init_picto [--text FOLDER] [--output FOLDER]

VAE and UNet get random weights from a fixed seed; tokenizer and text encoder are those of `python
-m scripts.picto.distil_text_encoder`. The recipes in configs/pretrain/ train the result.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from inference.runtime import output

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 192,
    "attention_head_dim": 4,
}
VAE = {
    "sample_size": 64,
    "latent_channels": 4,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}
NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}


def main() -> None:
    """Write the untrained parts and the folder's index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=Path("runs/picto/text"))
    parser.add_argument("--output", type=Path, default=Path("runs/picto/untrained"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    for part in ("tokenizer", "text_encoder"):
        source = options.text / part
        if not source.is_dir():
            parser.error(
                f"{source} is missing: run python -m scripts.picto.distil_text_encoder first"
            )
        shutil.copytree(source, options.output / part, dirs_exist_ok=True)
    torch.manual_seed(options.seed)
    AutoencoderKL(**VAE).save_pretrained(options.output / "vae")
    UNet2DConditionModel(**UNET).save_pretrained(options.output / "unet")
    DDIMScheduler(**NOISE_SCHEDULE).save_pretrained(options.output / "scheduler")
    (options.output / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    output(f"untrained picto: {options.output}")


if __name__ == "__main__":
    main()
