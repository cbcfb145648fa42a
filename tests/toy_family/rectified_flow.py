"""Rectified flow as a parametrization: Liu et al. 2022, arXiv 2209.03003; as in SD3 and FLUX.1."""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from inference.models import Parametrization

Time = TypeVar("Time", float, np.ndarray, Tensor)


class RectifiedFlow(Parametrization):
    """Straight paths x_t = (1 - t) x0 + t noise, on which the model predicts noise - x0.

    Timestep i of n, which may have a fraction, stands for the time (i + 1) / n, shifted. What
    samplers go through, x0 + sigma * noise, is x_t / (1 - t) with sigma = t / (1 - t). At t = 1
    sigma would be infinite: samplers begin a little before.

    Args:
        num_train_timesteps: how many there are.
        shift: k of t' = k t / (1 + (k - 1) t), by which timesteps lie closer to noise.
    """

    LAST_TIME = 1 - 1e-4
    """Where samplers begin."""

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        self._count = num_train_timesteps
        self.shift = shift

    @property
    def num_train_timesteps(self) -> int:
        return self._count

    @property
    def last_timestep(self) -> int:
        return self._count - 1

    @property
    def log_sigmas(self) -> np.ndarray:
        return self._log_sigmas

    @cached_property
    def _log_sigmas(self) -> np.ndarray:
        times = self.shifted(np.arange(1, self._count + 1) / self._count).clip(max=self.LAST_TIME)
        return np.log(times / (1 - times))

    def shifted(self, time: Time) -> Time:
        """Return t'."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def sigma(self, timestep: float) -> float:
        time = min(self.shifted((timestep + 1) / self._count), self.LAST_TIME)
        return time / (1 - time)

    def timestep(self, sigma: float) -> float:
        time = sigma / (1 + sigma)
        even = time / (self.shift - (self.shift - 1) * time)
        return min(max(even * self._count - 1, 0.0), float(self.last_timestep))

    def squared_scale(self, sigma: float) -> float:
        return (1 + sigma) ** 2

    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        """Return them as they are: `times` shifts."""
        return uniform

    def times(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return t of timesteps (b,), as (b, 1, …) on the device of `like`."""
        even = (timesteps.double() + 1) / self._count
        return self.shifted(even).view(-1, *[1] * (like.ndim - 1)).to(like)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        time = self.times(timesteps, latents)
        return (1 - time) * latents + time * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def denoised(self, x: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        """Return x_t - t v, with x_t = x / (1 + sigma) and t = sigma / (1 + sigma)."""
        return (x - prediction * sigma) / (1 + sigma)

    def loss_weight(self, timesteps: Tensor, weighting: str, snr_gamma: float) -> Tensor:
        """Return 1: weights by signal-to-noise ratios are of epsilon and velocity."""
        if weighting != "uniform":
            raise ValueError(f"loss.weighting: {weighting} is not of rectified flow; take uniform")
        return torch.ones(len(timesteps))
