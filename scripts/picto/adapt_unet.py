"""Adapt a trained UNet to another VAE, as the start of further training.

    python -m scripts.picto.adapt_unet FOLDER --vae FOLDER --output FOLDER

Two linear maps between the latents of the two VAEs are fitted by least squares on images, and
folded into the UNet's first and last convolution: its knowledge of subjects and composition is
kept, and what no linear map can express is left to training. Reads diffusers folders; the first
contains the UNet with its own VAE. Needs `python -m scripts.picto.build_picto_dataset`.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.runtime import output
from scripts.picto.whiten_latents import PICTURES, modes
from scripts.score.evaluate_picto import read_images, read_pairs, to_pixels


def fitted(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """Fit (n, a) to (n, b) by least squares; return the matrix (b, a) and explained variance."""
    inputs, outputs = inputs - inputs.mean(0), outputs - outputs.mean(0)
    matrix = torch.linalg.lstsq(inputs, outputs).solution.T
    rest = outputs - inputs @ matrix.T
    return matrix, 1 - (rest.square().sum() / outputs.square().sum()).item()


@torch.no_grad()
def fold(unet: Any, to_old: Tensor, to_new: Tensor) -> None:
    """Make the UNet accept and predict latents of the new VAE."""
    weight = unet.conv_in.weight
    weight.copy_(torch.einsum("ojhw,jk->okhw", weight, to_old))
    weight, bias = unet.conv_out.weight, unet.conv_out.bias
    weight.copy_(torch.einsum("ij,jchw->ichw", to_new, weight))
    bias.copy_(to_new @ bias)


def main() -> None:
    """Write the folder and print how well the maps fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    pairs = read_pairs(Path("datasets/picto/images/train"))
    pixels = to_pixels(read_images(pairs[:: max(1, len(pairs) // PICTURES)]))
    latents = []
    for folder in (options.folder, options.vae):
        vae: Any = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
        latents.append((modes(vae, pixels) * vae.config.scaling_factor).double())
    old, new = latents
    to_old, old_share = fitted(new, old)
    to_new, new_share = fitted(old, new)
    unet = UNet2DConditionModel.from_pretrained(options.folder / "unet").float()
    fold(unet, to_old.float(), to_new.float())
    shutil.copytree(options.folder, options.output, dirs_exist_ok=True)
    shutil.copytree(options.vae / "vae", options.output / "vae", dirs_exist_ok=True)
    unet.save_pretrained(options.output / "unet")
    output(f"old latents from new ones: {old_share:.3f} of the variance")
    output(f"new latents from old ones: {new_share:.3f} of the variance")


if __name__ == "__main__":
    main()
