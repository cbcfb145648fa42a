# SPDX-License-Identifier: Apache-2.0
"""Training steps at full size: recipe, overrides, shape of the latents of one example.

FAKE_FULL is the target of full_size_folders.py, FAKE_PICTURES a folder of captioned pictures.
"""

import os

FULL, PICTURES = os.environ["FAKE_FULL"], os.environ["FAKE_PICTURES"]


def sd(name: str) -> list[str]:
    """Return overrides for a Stable Diffusion model at full size."""
    return [f"base_model.path={FULL}/{name}", f"data.path={PICTURES}"]


CLIPS = [f"data.path={PICTURES}"]
XL = [*sd("sdxl"), "data.resolution=1024", "base_model.vae_precision=fp32"]
ONE = ["train_batch_size=1"]
UNCHECKPOINTED = ["gradient_checkpointing=false"]
CASES: dict[str, tuple[str, list[str], tuple[int, ...]]] = {
    "sd15 lora b4 ckpt": ("configs/lora.yaml", sd("sd15"), (4, 64, 64)),
    "sd15 lora b1 ckpt": ("configs/lora.yaml", sd("sd15") + ONE, (4, 64, 64)),
    "sd15 lora b1 full-act": ("configs/lora.yaml", sd("sd15") + ONE + UNCHECKPOINTED, (4, 64, 64)),
    "sd15 lora b4 full-act": ("configs/lora.yaml", sd("sd15") + UNCHECKPOINTED, (4, 64, 64)),
    "sd15 unet b4 ckpt noema 8bit": (
        "configs/text_to_image.yaml",
        [*sd("sd15"), "ema=null"],
        (4, 64, 64),
    ),
    "sd15 unet b1 full-act noema 8bit": (
        "configs/text_to_image.yaml",
        [*sd("sd15"), "ema=null", *ONE, *UNCHECKPOINTED],
        (4, 64, 64),
    ),
    "sd15 hypernetwork b4 ckpt": ("configs/hypernetwork.yaml", sd("sd15"), (4, 64, 64)),
    "sd15 textual b4 ckpt": ("configs/textual_inversion.yaml", sd("sd15"), (4, 64, 64)),
    "sdxl lora b1 ckpt": ("configs/lora.yaml", XL + ONE, (4, 128, 128)),
    "sdxl lora b1 full-act": ("configs/lora.yaml", XL + ONE + UNCHECKPOINTED, (4, 128, 128)),
    "sdxl lora b4 ckpt": ("configs/lora.yaml", XL, (4, 128, 128)),
    "sdxl lora+te b1 ckpt": (
        "configs/lora.yaml",
        XL + ONE + ["objective.train_text_encoder=true"],
        (4, 128, 128),
    ),
    "sdxl unet b1 ckpt noema 8bit": (
        "configs/text_to_image.yaml",
        XL + ONE + ["ema=null"],
        (4, 128, 128),
    ),
    "sdxl unet b1 full-act noema 8bit": (
        "configs/text_to_image.yaml",
        XL + ONE + ["ema=null"] + UNCHECKPOINTED,
        (4, 128, 128),
    ),
    "cog5b lora r64 49x480x720 ckpt (configs)": (
        "configs/cogvideox_lora.yaml",
        CLIPS,
        (13, 16, 60, 90),
    ),
    "cog5b lora r64 49x480x720 full-act": (
        "configs/cogvideox_lora.yaml",
        CLIPS + UNCHECKPOINTED,
        (13, 16, 60, 90),
    ),
    "cog5b lora r64 49x480x720 b4 ckpt": (
        "configs/cogvideox_lora.yaml",
        [*CLIPS, "train_batch_size=4"],
        (13, 16, 60, 90),
    ),
    "cog2b lora r64 49x480x720 ckpt": (
        "configs/cogvideox_lora.yaml",
        [*CLIPS, "base_model.path=THUDM/CogVideoX-2b", "mixed_precision=fp16"],
        (13, 16, 60, 90),
    ),
    "cog1.5 lora r128 81x768x1360 ckpt": (
        "configs/cogvideox_lora.yaml",
        [*CLIPS, "base_model.path=THUDM/CogVideoX1.5-5B", "objective.rank=128"],
        (21, 16, 96, 170),
    ),
}
