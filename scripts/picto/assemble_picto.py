r"""Assemble an embedded model from its pretraining runs, in fp16.

    python -m scripts.picto.assemble_picto [--denoiser FOLDER] [--vae FOLDER] [--output FOLDER]
    python -m scripts.picto.assemble_picto --denoiser runs/picto_motion_familiar/artifacts/last \
        --vae runs/picto_motion/even --output inference/assets/picto-motion

UNet or transformer, text encoder and tokenizer come from one diffusers folder, the VAE from
another.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from inference.runtime import output

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def copy_in_half(source: Path, target: Path, file: str) -> int:
    """Copy a part's configuration, and its weights as fp16; return the number of weights."""
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    config.pop("_name_or_path", None)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half() for name, value in load_file(source / file).items()}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise SystemExit(f"{source / file}: not finite in fp16: {', '.join(broken[:3])}")
    save_file(weights, target / file, metadata={"format": "pt"})
    return sum(value.numel() for value in weights.values())


def main() -> None:
    """Write the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--denoiser", type=Path, default=Path("runs/picto_unet_last/artifacts/last")
    )
    parser.add_argument("--vae", type=Path, default=Path("runs/picto_vae_ready"))
    parser.add_argument("--output", type=Path, default=Path("inference/assets/picto"))
    options = parser.parse_args()

    for part, file in WEIGHTS.items():
        source = (options.vae if part == "vae" else options.denoiser) / part
        if not source.is_dir():
            continue
        count = copy_in_half(source, options.output / part, file)
        output(f"{part:13} {count / 1e6:6.2f} M weights")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(options.denoiser / part, options.output / part, dirs_exist_ok=True)
    shutil.copyfile(options.denoiser / "model_index.json", options.output / "model_index.json")
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    output(f"{options.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
