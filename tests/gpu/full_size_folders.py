# SPDX-License-Identifier: Apache-2.0
"""Write folders with the configs of SD 1.5, SD 2.1 (768, v) and SDXL 1.0: tokenizers, no weights.

python -m tests.gpu.full_size_folders TARGET
"""

import json
import sys
from pathlib import Path

from inference.models.stable_diffusion.detect import FAMILIES, NOISE_SCHEDULE
from inference.models.stable_diffusion.keys import clip_tokenizer

MODELS = (("sd15", "sd1", "epsilon"), ("sd21", "sd2", "v_prediction"), ("sdxl", "sdxl", "epsilon"))
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


def main(target: Path) -> None:
    """Write a folder for each model."""
    for name, key, prediction in MODELS:
        folder = target / name
        for part, config in FAMILIES[key].configs.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            content = dict(config) | ({"_class_name": CLASSES[part]} if part in CLASSES else {})
            if name == "sd21" and part == "unet":
                content["sample_size"] = 96
            if name == "sdxl" and part == "vae":
                content["force_upcast"] = True
            (folder / part / "config.json").write_text(json.dumps(content))
        (folder / "scheduler").mkdir(exist_ok=True)
        schedule = NOISE_SCHEDULE | {"prediction_type": prediction}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
        clip_tokenizer(pads_with_end=True).save_pretrained(folder / "tokenizer")
        if name == "sdxl":
            clip_tokenizer(pads_with_end=False).save_pretrained(folder / "tokenizer_2")
        index = {"_class_name": "StableDiffusionPipeline"}
        (folder / "model_index.json").write_text(json.dumps(index))
        print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
