"""The loss of inpainting models: Rombach et al. 2022 (arXiv 2112.10752), section 4.5.

The UNet reads noisy latents, a mask and the latents of the masked image, side by side, in the
order of diffusers' train_dreambooth_inpaint.py. The masked image is encoded in every step, since
its mask may change in every epoch; latents of the whole image may be cached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.models import Conditions
from inference.runtime import to_device
from train.common import Batch, encode_in_parts, normal
from train.losses.denoising import Denoising


@dataclass(frozen=True)
class InpaintingDenoising(Denoising):
    """Turns a batch of images with masks into one loss per example."""

    def loss(self, batch: Batch) -> Tensor:
        return super().loss({**batch, "masked_latents": self.masked_latents(batch)})

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Conditions, batch: Batch) -> Tensor:
        assert "inpainting_mask" in batch and "masked_latents" in batch
        further = batch["inpainting_mask"], batch["masked_latents"]
        seen = torch.cat(
            [noisy, *(to_device(one, noisy.device).to(noisy.dtype) for one in further)], dim=1
        )
        return self.base.predict(seen, timesteps, states, batch.get("sizes"))

    @torch.no_grad()
    def masked_latents(self, batch: Batch) -> Tensor:
        """Return the latents of the masked images, by `data.latent_sampling`; fp32."""
        assert "masked_pixels" in batch
        with self.in_its_own_format():
            mean, std = encode_in_parts(self.base, batch["masked_pixels"])
        if self.latent_sampling == "deterministic":
            return mean
        once = self.latent_sampling == "once"
        numbers = batch["indices"] if once else batch["positions"]
        return mean + std * normal(mean, self.seed, "masked latents", numbers)
