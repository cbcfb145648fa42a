"""One language for all base models: which clean latent is expected at (x, sigma)?"""

from math import sqrt

import torch
from torch import Tensor

from inference.base_model import BaseModel
from inference.conditions import Conditions
from inference.schedules import NoiseLevels


class Denoiser:
    """A base model that predicts noise or velocity, as a function (x, sigma) -> clean latent.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) takes the prompts and the
    negative prompts through the UNet in one batch; at a scale of 1 the latter are left out.

    Args:
        base: the base model.
        positive: what the UNet is told of b prompts, in its number format.
        negative: the same for the negative prompts; None where the scale is 1.
        cfg_scale: 1 is no guidance, 0 the negative prompts alone.
        levels: at which timestep the model is asked about a sigma; without it the model's own.
        keeps_uncond: the negative prompts are heeded at a scale of 1 too, and `last_uncond` is what
            was expected for them at the last call.
    """

    def __init__(
        self,
        base: BaseModel,
        positive: Conditions,
        negative: Conditions | None = None,
        cfg_scale: float = 1.0,
        *,
        levels: NoiseLevels | None = None,
        keeps_uncond: bool = False,
    ) -> None:
        if negative is None and (cfg_scale != 1 or keeps_uncond):
            raise ValueError(f"a cfg_scale of {cfg_scale} needs negative prompts")
        self.base = base
        self.levels = levels or NoiseLevels(base.alphas_cumprod)
        self.last_uncond: Tensor | None = None
        self.cfg_scale = cfg_scale
        self.is_guided = negative is not None and (cfg_scale != 1 or keeps_uncond)
        self.conditions = positive
        if negative is not None and self.is_guided:
            self.conditions = Conditions.cat([positive, negative])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The clean latents expected at x (b, c, h, w), fp32."""
        if not self.is_guided:
            return self.denoise(x, sigma)
        positive, negative = self.denoise(torch.cat([x, x]), sigma).chunk(2)
        self.last_uncond = negative
        return negative + (positive - negative) * self.cfg_scale

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Without guidance: one latent for each of the conditions.

        The model sees x / sqrt(sigma^2 + 1), of variance 1. Velocity: Salimans & Ho 2022, arXiv
        2202.00512.
        """
        scale = 1 / sqrt(sigma**2 + 1)
        timesteps = torch.full((len(x),), self.levels.timestep(sigma), device=x.device)
        seen = (x * scale).to(self.conditions.states.dtype)
        output = self.base.predict(seen, timesteps, self.conditions).float()
        if self.base.prediction_type == "v_prediction":
            return x * scale**2 - output * (sigma * scale)
        return x - output * sigma
