"""The parametrization of a model: noise levels, noising, target, clean latents and loss weight.

The loss and the samplers both use a `Parametrization`, so that timesteps and predictions mean the
same in both. The loss mixes latents and noise as the model sees them; samplers use
through x = x0 + sigma * noise, which is that mixture times `scale(sigma)`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference.runtime import to_device
from inference.sampling import NoiseLevels, interpolated_place, interpolated_sigma

if TYPE_CHECKING:
    import numpy as np

SMALLEST_ALPHA = 4.8973451890853435e-08
"""Share of signal at the last timestep of models with zero terminal SNR; as in A1111."""


class Parametrization(NoiseLevels):
    """What a model learns and how it is noised; timesteps are 0 … `num_train_timesteps` - 1."""

    @property
    @abstractmethod
    def num_train_timesteps(self) -> int:
        """Return the number of timesteps of the model's training."""

    @abstractmethod
    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        """Return the timesteps (b,) to train at, of as many evenly distributed ones, int64."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the model's input: latents (b, …) with noise at the timesteps (b,)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the model's target."""

    @abstractmethod
    def denoised(self, x: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        """Return the clean latents of x = x0 + sigma * noise, from the prediction."""

    @abstractmethod
    def loss_weight(self, timesteps: Tensor, weighting: str, snr_gamma: float) -> Tensor:
        """Return the weight of the prediction's squared error at the timesteps, (b,).

        Args:
            timesteps: (b,).
            weighting: `loss.weighting` of recipes: uniform, min_snr or truncated_snr.
            snr_gamma: the bound of the last two.
        """


class DiscreteVP(Parametrization):
    """Variance-preserving diffusion at discrete timesteps: Ho et al. 2020, arXiv 2006.11239.

    Args:
        alphas_cumprod: the signal's share of the variance at each timestep, (num_timesteps,).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod
        self._tables: dict[tuple[Hashable, torch.device], Tensor] = {}
        """What `_look_up` has computed, by its name and device."""

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def last_timestep(self) -> int:
        return self.num_train_timesteps - 1

    @property
    def log_sigmas(self) -> np.ndarray:
        """Return log sigma of each timestep; without signal, that of a share of 5e-8."""
        return self._log_sigmas

    @cached_property
    def _log_sigmas(self) -> np.ndarray:
        import numpy as np

        signal = self.alphas_cumprod.double().cpu().numpy().clip(min=SMALLEST_ALPHA)
        return np.log((1 - signal) / signal) / 2

    def sigma(self, timestep: float) -> float:
        """Return the sigma of a timestep; between two of them linear in log sigma."""
        return interpolated_sigma(self.log_sigmas, timestep)

    def timestep(self, sigma: float) -> float:
        return interpolated_place(self.log_sigmas, sigma)

    def squared_scale(self, sigma: float) -> float:
        return 1 + sigma**2

    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        """Return them as they are: every timestep is as likely."""
        return uniform

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return latents with noise, in fp32, or in fp64 if all are.

        The schedulers' own `add_noise` rounds the shares to the latents' format first: in bf16
        those of timesteps 0 and 1 become 1, which leaves the noise out.
        """
        signal, sigma = self.factors(timesteps, latents)
        return signal * latents + sigma * noise

    def factors(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of latents and noise, (b, 1, …) each, on their device."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (-1, *[1] * (like.ndim - 1))
        signal = self._look_up("signal", timesteps, lambda: self.alphas_cumprod.sqrt())
        sigma = self._look_up("sigma", timesteps, lambda: (1 - self.alphas_cumprod).sqrt())
        return (
            to_device(signal.to(dtype).view(shape), like.device),
            to_device(sigma.to(dtype).view(shape), like.device),
        )

    def _look_up(self, name: Hashable, timesteps: Tensor, table: Callable[[], Tensor]) -> Tensor:
        """Return the entries (b,) of a table (num_timesteps,) at the timesteps, on their device.

        Tables are computed on the CPU and stay on the devices that they were sent to, so that a
        GPU needs the host no more.
        """
        key = name, timesteps.device
        if key not in self._tables:
            values = table()
            self._tables[key] = values if values.is_meta else values.to(timesteps.device)
        return self._tables[key][timesteps]

    def loss_weight(self, timesteps: Tensor, weighting: str, snr_gamma: float) -> Tensor:
        """Return weights by the signal-to-noise ratio: Hang et al. 2023, arXiv 2303.09556."""

        def weights() -> Tensor:
            if weighting == "uniform":
                return torch.ones_like(self.alphas_cumprod)
            snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
            low = 1.0 if weighting == "truncated_snr" else 0.0
            return snr.clamp(low, snr_gamma) / self.snr_of_prediction(snr)

        return self._look_up((weighting, snr_gamma), timesteps, weights)

    @abstractmethod
    def snr_of_prediction(self, snr: Tensor) -> Tensor:
        """Return the divisor that turns the prediction's error into that of the clean latents."""


class Epsilon(DiscreteVP):
    """The model predicts the noise."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise

    def denoised(self, x: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        return x - prediction * sigma

    def snr_of_prediction(self, snr: Tensor) -> Tensor:
        return snr


class Velocity(DiscreteVP):
    """The model predicts the velocity: Salimans & Ho 2022, arXiv 2202.00512."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the velocity, in the format of `add_noise`.

        Its mean squared error is that of the clean latents, over 1 - alpha: CogVideoX' loss.
        """
        signal, sigma = self.factors(timesteps, latents)
        return signal * noise - sigma * latents

    def denoised(self, x: Tensor, prediction: Tensor, sigma: float) -> Tensor:
        scale = 1 / sqrt(sigma**2 + 1)
        return x * scale**2 - prediction * (sigma * scale)

    def snr_of_prediction(self, snr: Tensor) -> Tensor:
        return snr + 1


PREDICTION_TYPES: dict[str, type[DiscreteVP]] = {"epsilon": Epsilon, "v_prediction": Velocity}
"""The prediction type in schedulers' configs -> the parametrization."""


def discrete_vp(alphas_cumprod: Tensor, prediction_type: str) -> DiscreteVP:
    """Return the parametrization of a model that a scheduler's config describes."""
    return PREDICTION_TYPES[prediction_type](alphas_cumprod)
