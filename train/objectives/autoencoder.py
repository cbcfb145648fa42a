"""The VAE of a latent diffusion model (Rombach et al. 2022, arXiv 2112.10752, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inference.artifacts import Checkpoint
from inference.models import DiffusionModel
from inference.runtime import to_device
from train.common import Batch, normal
from train.config import AutoencoderConfig, TrainRecipe
from train.objectives.base import Objective

if TYPE_CHECKING:
    from train.losses import EfficientNetLite0

VARIANCE_MOMENTUM = 0.01


class AutoencoderObjective(Objective):
    """Trains the VAE to reconstruct its images through a latent that is nearly normal."""

    latent_variance: Tensor

    def __init__(self, recipe: TrainRecipe, base: DiffusionModel) -> None:
        super().__init__(base)
        config = recipe.objective
        assert isinstance(config, AutoencoderConfig)
        self.config = config
        self.seed = recipe.seed
        vae = base.vae.float()
        decoder = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
        decoder = {name: part for name, part in decoder.items() if part is not None}
        self.vae = vae if config.part == "whole" else nn.ModuleDict(decoder)
        self.vae.requires_grad_(True)
        variance = torch.tensor(float(vae.config.scaling_factor) ** -2)
        self.register_buffer("latent_variance", variance)
        # A tuple keeps the frozen feature network out of the trained modules.
        self.features: tuple[EfficientNetLite0, ...] = ()
        if self.config.perceptual_weight:
            from train.losses import load_efficientnet_lite0

            self.features = (load_efficientnet_lite0(),)

    def forward(self, batch: Batch) -> Tensor:
        assert "pixels" in batch
        pixels = to_device(batch["pixels"], self.base.device)
        config, vae = self.config, self.base.vae
        with torch.set_grad_enabled(config.part == "whole" and torch.is_grad_enabled()):
            posterior = vae.encode(pixels).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            latents = mean + std * normal(mean, self.seed, "latents", batch["positions"])
        self.track_variance(latents.detach())
        restored = vae.decode(latents).sample.float()
        loss = config.l1_weight * (restored - pixels).abs().flatten(1).mean(1)
        if config.gradient_weight:
            loss = loss + config.gradient_weight * gradient_error(restored, pixels)
        if config.perceptual_weight:
            loss = loss + config.perceptual_weight * self.perceptual_error(restored, pixels)
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1)
        return loss + config.kl_weight * kl

    def perceptual_error(self, restored: Tensor, pixels: Tensor) -> Tensor:
        """Return the mean absolute distance in the feature network's blocks, (b,)."""
        network, count = self.features[0].to(pixels.device), len(pixels)
        if pixels.dim() == 5:  # every frame by itself
            restored, pixels = (one.transpose(1, 2).flatten(0, 1) for one in (restored, pixels))
        with torch.no_grad():
            wanted = network.features(pixels)
        pairs = zip(network.features(restored), wanted, strict=True)
        errors = torch.stack([(a - b).abs().flatten(1).mean(1) for a, b in pairs]).mean(0)
        return errors.view(count, -1).mean(1)

    @torch.no_grad()
    def track_variance(self, latents: Tensor) -> None:
        """Update the scaling factor, which makes the latents' variance 1, by a running mean."""
        if self.training and self.config.part == "whole":
            self.latent_variance.lerp_(latents.square().mean(), VARIANCE_MOMENTUM)

    def artifact(self) -> Checkpoint:
        if self.config.part == "whole":
            self.base.vae.register_to_config(scaling_factor=float(self.latent_variance) ** -0.5)
        return Checkpoint.of(self.base, parts=("vae",))


def gradient_error(restored: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean absolute error of image gradients of (b, 3, …, h, w), (b,)."""
    difference = restored - pixels
    across = difference.diff(dim=-1).abs().flatten(1).mean(1)
    down = difference.diff(dim=-2).abs().flatten(1).mean(1)
    return across + down
