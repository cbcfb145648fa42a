"""Latents and noise mixed, and what a model is to predict of the mixture."""

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Latents (b, …) with noise at signal shares `alphas` (b,), in fp32 or in fp64 if all are.

    The schedulers' own `add_noise` rounds the shares to the latents' format first: in bf16 those of
    timesteps 0 and 1 become 1, which leaves the noise out.
    """
    signal, sigma = _factors(alphas, latents)
    return signal * latents + sigma * noise


def velocity(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """What the model is to predict (Salimans & Ho 2022, arXiv 2202.00512), as `add_noise`.

    Its mean squared error is that of the clean latents, over 1 - alpha: CogVideoX' loss.
    """
    signal, sigma = _factors(alphas, latents)
    return signal * noise - sigma * latents


def _factors(alphas: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(latents.dtype, torch.float32)
    shape = (-1, *[1] * (latents.ndim - 1))
    signal, sigma = alphas.sqrt().view(shape), (1 - alphas).sqrt().view(shape)
    return signal.to(latents.device, dtype), sigma.to(latents.device, dtype)
