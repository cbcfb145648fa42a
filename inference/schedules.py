"""The levels of noise that a base model knows, and the schedules that lead down through them.

sigma is the noise's standard deviation beside a clean latent of scale 1: x = x0 + sigma * noise.
Names and levels of the schedules are those of A1111 1.10.
"""

from collections.abc import Callable
from math import exp, log

import numpy as np
from torch import Tensor

SMALLEST_ALPHA = 4.8973451890853435e-08
"""Share of signal at the last timestep of models that train down to none; as in A1111."""


class NoiseLevels:
    """The sigmas that a base model was trained on, and what lies between them.

    Args:
        alphas_cumprod: the signal's share of the variance at each timestep, (num_timesteps,).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        signal = alphas_cumprod.double().cpu().numpy().clip(min=SMALLEST_ALPHA)
        self._log_sigmas = np.log((1 - signal) / signal) / 2
        self.last_timestep = len(signal) - 1

    @property
    def sigma_min(self) -> float:
        """The sigma of the first timestep."""
        return self.sigma(0)

    @property
    def sigma_max(self) -> float:
        """The sigma of the last timestep."""
        return self.sigma(self.last_timestep)

    def sigma(self, timestep: float) -> float:
        """The sigma of a timestep; between two of them linear in log sigma."""
        timesteps = np.arange(len(self._log_sigmas))
        return exp(np.interp(timestep, timesteps, self._log_sigmas))

    def timestep(self, sigma: float) -> float:
        """The timestep, with fraction, of a sigma above 0; held within the model's range."""
        timesteps = np.arange(len(self._log_sigmas))
        return float(np.interp(log(sigma), self._log_sigmas, timesteps))


Schedule = Callable[[NoiseLevels, int], list[float]]
"""(levels, steps) -> steps + 1 falling sigmas, the last one 0."""


def uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Evenly spaced timesteps, from the last to the first."""
    return [levels.sigma(t) for t in np.linspace(levels.last_timestep, 0, steps)] + [0.0]


def sgm_uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Evenly spaced timesteps that stop one short of the first (Stability AI generative-models)."""
    timesteps = np.linspace(levels.last_timestep, 0, steps + 1)[:-1]
    return [levels.sigma(t) for t in timesteps] + [0.0]


def karras(levels: NoiseLevels, steps: int, rho: float = 7.0) -> list[float]:
    """Even in sigma^(1/rho): Karras et al. 2022, arXiv 2206.00364, equation 5."""
    high, low = levels.sigma_max ** (1 / rho), levels.sigma_min ** (1 / rho)
    return [float(root**rho) for root in np.linspace(high, low, steps)] + [0.0]


def exponential(levels: NoiseLevels, steps: int) -> list[float]:
    """Even in log sigma."""
    ends = log(levels.sigma_max), log(levels.sigma_min)
    return [exp(value) for value in np.linspace(*ends, steps)] + [0.0]


def ddim_levels(levels: NoiseLevels, steps: int) -> list[float]:
    """The timesteps 1, 1 + n, … falling, with n = timesteps // steps; ends at the first, not at 0.

    As A1111's DDIM takes them: 20 steps are 19 evaluations, at 951 … 51. It would draw nothing in
    one step; here one step goes from the highest noise to the first level.
    """
    count = levels.last_timestep + 1
    timesteps = list(range(1, count, max(1, count // steps)))
    if len(timesteps) == 1:
        timesteps.append(levels.last_timestep)
    return [levels.sigma(timestep) for timestep in reversed(timesteps)]


SCHEDULES: dict[str, Schedule] = {
    "Uniform": uniform,
    "Karras": karras,
    "Exponential": exponential,
    "SGM Uniform": sgm_uniform,
}
"""The schedules by name, besides `Automatic`, which each sampler has its own meaning of."""
