"""One language for all base models: which clean latent is expected at (x, sigma)?"""

from math import sqrt

import torch
from torch import Tensor

from inference.base_model import BaseModel
from inference.schedules import NoiseLevels


class Denoiser:
    """A base model that predicts noise or velocity, as a function (x, sigma) -> clean latent.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) takes the prompts and the
    negative prompts through the UNet in one batch; at a scale of 1 the latter are left out.

    Args:
        base: the base model.
        prompt_states: (b, tokens, dim), in the UNet's number format.
        negative_states: the same for the negative prompts; None where the scale is 1.
        cfg_scale: 1 is no guidance, 0 the negative prompts alone.
    """

    def __init__(
        self,
        base: BaseModel,
        prompt_states: Tensor,
        negative_states: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> None:
        if negative_states is None and cfg_scale != 1:
            raise ValueError(f"a cfg_scale of {cfg_scale} needs negative prompts")
        self.base = base
        self.levels = NoiseLevels(base.alphas_cumprod)
        self.cfg_scale = cfg_scale
        self.is_guided = negative_states is not None and cfg_scale != 1
        self.states = prompt_states
        if negative_states is not None and self.is_guided:
            self.states = torch.cat([prompt_states, negative_states])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The clean latents expected at x (b, c, h, w), fp32."""
        if not self.is_guided:
            return self.denoise(x, sigma)
        positive, negative = self.denoise(torch.cat([x, x]), sigma).chunk(2)
        return negative + (positive - negative) * self.cfg_scale

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Without guidance: one latent for each row of `states`.

        The model sees x / sqrt(sigma^2 + 1), of variance 1. Velocity: Salimans & Ho 2022, arXiv
        2202.00512.
        """
        scale = 1 / sqrt(sigma**2 + 1)
        timesteps = torch.full((len(x),), self.levels.timestep(sigma), device=x.device)
        seen = (x * scale).to(self.states.dtype)
        output = self.base.predict(seen, timesteps, self.states).float()
        if self.base.prediction_type == "v_prediction":
            return x * scale**2 - output * (sigma * scale)
        return x - output * sigma
