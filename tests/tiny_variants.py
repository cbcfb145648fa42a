"""Tiny variants of the tiny base models: inpainting models, SDXL's refiner, v-prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["sd", "sdxl", "refiner"]
PIPELINES = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL", "refiner": "StableDiffusionXL"}
ZERO_SNR = "zero_snr"
"""Prediction: v-prediction with zero terminal SNR."""


def make_variant(
    source: Path, folder: Path, kind: Kind, inpaints: bool = False, prediction: str = "epsilon"
) -> Path:
    """Write a variant of the folder of a tiny base model; return its folder.

    Args:
        source: the tiny base model, of the SDXL layout for `sdxl` and `refiner`.
        folder: the new folder.
        kind: the layout.
        inpaints: whether its UNet takes nine channels.
        prediction: `epsilon`, `v_prediction` or ZERO_SNR.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    first = ("text_encoder", "tokenizer") if kind == "refiner" else ()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("unet", *first))
    config: dict[str, Any] = json.loads((source / "unet" / "config.json").read_text())
    config["in_channels"] = 9 if inpaints else 4
    if kind == "refiner":  # no attention in the first up block, as in the real one
        config |= {
            "block_out_channels": [8, 16, 16],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": 1,
            "attention_head_dim": [2, 4, 4],
            "cross_attention_dim": 24,
            "projection_class_embeddings_input_dim": 5 * 8 + 20,
        }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet: Any = UNet2DConditionModel.from_config(config)
    unet.save_pretrained(folder / "unet")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    schedule = json.loads(scheduler.read_text())
    if prediction != "epsilon":
        schedule["prediction_type"] = "v_prediction"
        schedule["rescale_betas_zero_snr"] = prediction == ZERO_SNR
    scheduler.write_text(json.dumps(schedule))
    ending = "InpaintPipeline" if inpaints else "Img2ImgPipeline" if first else "Pipeline"
    index = {"_class_name": PIPELINES[kind] + ending}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
