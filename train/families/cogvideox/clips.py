"""v-prediction loss with CogVideoX's image conditioning.

Plain mean squared error of the velocity, in fp32: CogVideoX's own trainer computes it as a weighted
error of the clean latents, which loses precision in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.models import Conditions
from inference.models.cogvideox import (
    VideoModel,
    image_latents,
    padding,
    place,
    with_noise,
    without,
)
from inference.runtime import to_device
from train.common import Batch, generator
from train.config import ImageConditionConfig
from train.losses import Denoising


def loss_with_motion(prediction: Tensor, target: Tensor, ratio: float = 0.25) -> Tensor:
    """Return each example's mean squared error, with that of frame differences; (b,), fp32.

    (1 - ratio) x error + ratio x error of the differences: X-Fun's `motion_sub_loss`
    (`scripts/cogvideox_fun/train_lora.py`), per example. As there, clips of one or two latent
    frames have only their plain error.

    Args:
        prediction: (b, latent frames, c, h, w).
        target: of the same shape.
        ratio: weight of the differences, 0 … 1.
    """
    errors = prediction.float() - target.float()
    loss = errors.square().flatten(1).mean(1)
    if errors.shape[1] <= 2:
        return loss
    return (1 - ratio) * loss + ratio * errors.diff(dim=1).square().flatten(1).mean(1)


@dataclass(frozen=True)
class ClipDenoising(Denoising):
    """Turns a batch of clips into one loss per example."""

    base: VideoModel
    image_condition: ImageConditionConfig = field(default_factory=ImageConditionConfig)

    def latents(self, batch: Batch) -> Tensor:
        """Return clean latents (b, f', c, h', w'); for CogVideoX 1.5 with its padding in front.

        The first latent frame is repeated, as in CogVideoX's own trainer; the pipelines drop the
        frames that are generated there.
        """
        latents = super().latents(batch)
        missing = padding(latents.shape[1], self.base.config.patch_size_t)
        return torch.cat([latents[:, :1]] * missing + [latents], dim=1)

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Conditions, batch: Batch) -> Tensor:
        image = self.image_conditioning(batch, noisy) if self.base.is_image_to_video else None
        return self.base.predict(noisy, timesteps, states, image)

    @torch.no_grad()
    def image_conditioning(self, batch: Batch, like: Tensor) -> Tensor:
        """Return an image-to-video model's conditioning on first frames, of the shape of `like`."""
        assert "first_frames" in batch
        config, positions = self.image_condition, batch["positions"]
        frames = to_device(batch["first_frames"], like.device)
        if config.noise:
            sources = [generator(self.seed, "image noise", position) for position in positions]
            frames = with_noise(frames, sources, config.noise_mean, config.noise_std)
        vae = self.base.vae
        with self.in_its_own_format():
            mean = vae.encode(frames.unsqueeze(2).to(vae.dtype)).latent_dist.mean.float()
        scaled = image_latents(
            mean.transpose(1, 2),
            vae.config.scaling_factor,
            vae.config.invert_scale_latents,
            config.latent_scale,
        )
        dropped = [
            bool(
                torch.rand((), generator=generator(self.seed, "image dropout", position))
                < config.dropout_rate
            )
            for position in positions
        ]
        return without(place(scaled, like.shape[1]), dropped)

    def errors(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None, "clips count as a whole (train.config.examples)"
        return loss_with_motion(prediction, target, self.config.motion_ratio)
