"""The loss of latent diffusion: noise, target and weight at a random timestep.

Ho et al. 2020 (arXiv 2006.11239) for epsilon, Salimans & Ho 2022 (arXiv 2202.00512) for velocity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.base_model import BaseModel
from train.batch import Batch
from train.config import LossConfig
from train.randomness import generator


@dataclass(frozen=True)
class Denoising:
    """Turns a batch into one loss per example."""

    base: BaseModel
    config: LossConfig
    seed: int

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean squared error of each example's prediction, (b,), fp32."""
        latents = self.latents(batch)
        noise = self.noise(batch["positions"], latents)
        timesteps = self.timesteps(batch["positions"])
        alphas = self.base.alphas_cumprod[timesteps]
        signal = alphas.sqrt().view(-1, 1, 1, 1).to(latents.device)
        sigma = (1 - alphas).sqrt().view(-1, 1, 1, 1).to(latents.device)

        noisy = signal * latents + sigma * noise
        states = batch.get("prompt_states")
        if states is None:
            states = self.base.encode_prompts(batch["prompts"])
        prediction = self.base.predict(noisy, timesteps.to(latents.device), states).float()

        if self.base.prediction_type == "epsilon":
            target = noise
        else:
            target = signal * noise - sigma * latents
        errors = (prediction - target).square().flatten(1).mean(1)
        return errors * self.weights(alphas).to(errors)

    def latents(self, batch: Batch) -> Tensor:
        """Clean latents, drawn from the VAE's distribution where that is asked for."""
        device = self.base.device
        if "pixels" in batch:
            with torch.no_grad():
                mean, std = self.base.encode_images(batch["pixels"])
        else:
            mean, std = batch["latents"].to(device), batch.get("latents_std")
        if std is None:
            return mean
        draws = [
            torch.randn(mean.shape[1:], generator=generator(self.seed, "latents", position))
            for position in batch["positions"]
        ]
        return mean + std.to(device) * torch.stack(draws).to(device)

    def noise(self, positions: list[int], like: Tensor) -> Tensor:
        """Standard normal noise of the shape of `like`, (b, c, h, w), drawn on the CPU."""
        draws = []
        for position in positions:
            source = generator(self.seed, "noise", position)
            noise = torch.randn(like.shape[1:], generator=source)
            if self.config.noise_offset:
                offset = torch.randn((like.shape[1], 1, 1), generator=source)
                noise = noise + self.config.noise_offset * offset
            draws.append(noise)
        return torch.stack(draws).to(like)

    def timesteps(self, positions: list[int]) -> Tensor:
        """Uniform timesteps (b,), int64, on the CPU."""
        low = self.config.min_timestep
        high = self.config.max_timestep or len(self.base.alphas_cumprod)
        draws = [
            torch.randint(low, high, (), generator=generator(self.seed, "timestep", position))
            for position in positions
        ]
        return torch.stack(draws)

    def weights(self, alphas: Tensor) -> Tensor:
        """What the prediction's error counts at signal shares `alphas` (b,)."""
        if self.config.weighting == "uniform":
            return torch.ones_like(alphas)
        snr = alphas / (1 - alphas)
        low = 1.0 if self.config.weighting == "truncated_snr" else 0.0
        of_clean_picture = snr.clamp(low, self.config.snr_gamma)
        per_prediction = snr if self.base.prediction_type == "epsilon" else snr + 1
        return of_clean_picture / per_prediction
