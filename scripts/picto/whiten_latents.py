"""Whiten a VAE's latents so that no channel repeats another, without changing its images.

    python -m scripts.picto.whiten_latents FOLDER --output FOLDER \
        [--variances even|visible] [--clips F]

Reads a diffusers folder and writes it with another VAE. An autoencoder may leave channels of its
latents nearly unused: two that move together, with only a small difference. The latents are rotated
to their principal axes, and the variances of these are made `even`, so that further training can
use all of them, or `visible`: proportional to the error (RMS of the pixels) without the axis, so
that a UNet decides first, at high noise, what is most visible. The matrix and its inverse are
folded into the 1x1 convolutions `quant_conv` and `post_quant_conv`, so that the VAE decodes a
latent's mode to the same image up to rounding. CogVideoX's VAE has none: there they are folded into
the encoder's last convolution, and into the decoder's first one and those of its norms, which all
read the latents. The zero padding of the first one then stands for the latents' mean: train the
decoder a little more. The standard deviations that the encoder predicts are reset to one tenth of
the latents'. Needs `python -m scripts.picto.build_picto_dataset`, or the clips of
`scripts.picto.build_picto_motion`.
"""

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.media import read_clip
from inference.runtime import output
from scripts.score.evaluate_picto import read_images, read_pairs, to_pixels

PICTURES = 600
CLIPS = 24
SPATIAL_NORM = "CogVideoXSpatialNorm3D"
BATCH = 50
RELATIVE_STD = 0.1


def batch_of(pixels: Tensor) -> int:
    """Return the batch size; clips are processed one by one."""
    return BATCH if pixels.dim() == 4 else 1


@torch.no_grad()
def modes(vae: Any, pixels: Tensor) -> Tensor:
    """Encode images (b, 3, h, w), -1 … 1, to latent modes, one row per position, (n, channels)."""
    latents = torch.cat(
        [vae.encode(part).latent_dist.mode() for part in pixels.split(batch_of(pixels))]
    )
    return latents.movedim(1, -1).flatten(0, -2)


def principal_axes(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (channels,) of latents (n, channels), and a row for each axis, variance 1."""
    mean = latents.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov((latents - mean).T))
    return mean, variances.rsqrt()[:, None] * axes.T


@torch.no_grad()
def visibility(vae: Any, pixels: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Return the RMS error of the pixels without each of the axes, (channels,)."""
    errors = []
    latents = torch.cat(
        [vae.encode(part).latent_dist.mode() for part in pixels.split(batch_of(pixels))]
    )
    whole = torch.cat([vae.decode(part).sample for part in latents.split(batch_of(pixels))])
    centred = latents - mean.view(-1, *[1] * (latents.dim() - 2))
    for row, column in zip(axes, torch.linalg.inv(axes).T, strict=True):
        share = torch.einsum("c,j,bj...->bc...", column, row, centred)
        without = [vae.decode(part).sample for part in (latents - share).split(batch_of(pixels))]
        errors.append((torch.cat(without) - whole).square().mean().sqrt())
    return torch.stack(errors)


@torch.no_grad()
def fold(vae: Any, mean: Tensor, turn: Tensor, std: float) -> None:
    """Make the VAE return `turn @ (latent - mean)` as its latents' means, with deviation `std`."""
    channels, last = len(mean), last_convolution(vae)
    weight, bias = last.weight, last.bias
    weight[:channels] = torch.einsum("ij,jk...->ik...", turn, weight[:channels])
    bias[:channels] = turn @ (bias[:channels] - mean)
    weight[channels:] = 0
    bias[channels:] = 2 * math.log(std)
    for reader in readers(vae):
        weight, bias = reader.weight, reader.bias
        bias += weight.flatten(2).sum(2) @ mean
        weight.copy_(torch.einsum("ij...,jk->ik...", weight, torch.linalg.inv(turn)))


def last_convolution(vae: Any) -> Any:
    """Return the convolution that outputs the latents."""
    return vae.encoder.conv_out.conv if vae.quant_conv is None else vae.quant_conv


def readers(vae: Any) -> list[Any]:
    """Return the convolutions that read latents: in CogVideoX's decoder also its norms'."""
    if vae.post_quant_conv is not None:
        return [vae.post_quant_conv]
    norms = [part for part in vae.decoder.modules() if type(part).__name__ == SPATIAL_NORM]
    of_norms = [conv.conv for norm in norms for conv in (norm.conv_y, norm.conv_b)]
    return [vae.decoder.conv_in.conv, *of_norms]


def read_clips(folder: Path) -> Tensor:
    """Return some clips of a folder, (b, 3, f, h, w) in -1 … 1."""
    files = sorted(folder.glob("*.webp"))
    files = files[:: max(1, len(files) // CLIPS)]
    frames = torch.stack([torch.from_numpy(read_clip(file).frames) for file in files])
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def main() -> None:
    """Write the folder and print the channels' variances."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variances", choices=("even", "visible"), default="even")
    parser.add_argument("--clips", type=Path, help="of a video model: the folder of its clips")
    options = parser.parse_args()

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    kind: Any = AutoencoderKL if options.clips is None else AutoencoderKLCogVideoX
    vae: Any = kind.from_pretrained(options.folder / "vae").float().eval()
    if options.clips is None:
        pairs = read_pairs(Path("datasets/picto/images/train"))
        pixels = to_pixels(read_images(pairs[:: max(1, len(pairs) // PICTURES)]))
    else:
        pixels = read_clips(options.clips)
    before = modes(vae, pixels).double()
    mean, turn = principal_axes(before)
    if options.variances == "visible":
        errors = visibility(vae, pixels, mean.float(), turn.float()).double()
        turn *= (errors / errors.mean()).sqrt()[:, None]
    after = (before - mean) @ turn.T
    fold(vae, mean.float(), turn.float(), RELATIVE_STD * after.std().item())
    vae.register_to_config(scaling_factor=1 / modes(vae, pixels).square().mean().sqrt().item())
    shutil.copytree(options.folder, options.output, dirs_exist_ok=True)
    vae.save_pretrained(options.output / "vae")
    for title, latents in (("before", before), ("after", after)):
        variances = torch.linalg.eigvalsh(torch.cov(latents.T)).tolist()
        shown = ", ".join(f"{value:.3f}" for value in variances)
        output(f"variances of the axes {title}: {shown}")


if __name__ == "__main__":
    main()
