"""The noise levels of a base model, in the common form of all samplers.

sigma is the standard deviation of the noise for a clean latent of scale 1: x = x0 + sigma * noise.
A base model's parametrization (`inference.models.Parametrization`) is its `NoiseLevels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import exp, log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class NoiseLevels(ABC):
    """The sigmas that a base model was trained with, and those between them."""

    @property
    @abstractmethod
    def log_sigmas(self) -> np.ndarray:
        """Return log sigma of each level, rising, all finite; (count,), fp64."""

    @property
    @abstractmethod
    def last_timestep(self) -> int:
        """Return the timestep of the highest sigma."""

    @abstractmethod
    def sigma(self, timestep: float) -> float:
        """Return the sigma of a timestep, which may lie between two levels."""

    @abstractmethod
    def timestep(self, sigma: float) -> float:
        """Return the timestep, with fraction, of a sigma above 0, held within the model's range."""

    @abstractmethod
    def squared_scale(self, sigma: float) -> float:
        """Return the square of `scale`."""

    def scale(self, sigma: float) -> float:
        """Return the divisor of x = x0 + sigma * noise that gives the model's input."""
        return sqrt(self.squared_scale(sigma))

    @property
    def count(self) -> int:
        """Return the number of levels."""
        return len(self.log_sigmas)

    @property
    def sigma_min(self) -> float:
        """Return the sigma of the first timestep."""
        return self.level(0)

    @property
    def sigma_max(self) -> float:
        """Return the sigma of the last timestep."""
        return self.level(self.count - 1)

    def level(self, index: int) -> float:
        """Return a level's sigma, counted from the lowest."""
        return exp(self.log_sigmas[index])


class LcmLevels(NoiseLevels):
    """Fifty of a model's levels, at the timesteps 19, 39, … 999 that LCMs were distilled at.

    Luo et al. 2023, arXiv 2310.04378; A1111 1.10.1 `modules/sd_samplers_lcm.py`. The model is asked
    at the timestep of the nearest level, whatever lies between them.
    """

    ORIGINAL_STEPS = 50

    def __init__(self, levels: NoiseLevels) -> None:
        self.levels = levels
        self.stride = max(1, levels.count // self.ORIGINAL_STEPS)
        self._log_sigmas = levels.log_sigmas[:: -self.stride][: self.ORIGINAL_STEPS][::-1]

    @property
    def log_sigmas(self) -> np.ndarray:
        return self._log_sigmas

    @property
    def last_timestep(self) -> int:
        return self.levels.last_timestep

    def sigma(self, timestep: float) -> float:
        """Return the sigma of a timestep; between two levels linear in log sigma."""
        lowest = self.last_timestep - (self.count - 1) * self.stride
        return interpolated_sigma(self.log_sigmas, (timestep - lowest) / self.stride)

    def timestep(self, sigma: float) -> float:
        """Return the timestep of the level that is nearest to sigma, a whole number."""
        import numpy as np

        behind = self.count - 1 - np.abs(self.log_sigmas - log(sigma)).argmin()
        return float(self.last_timestep - behind * self.stride)

    def squared_scale(self, sigma: float) -> float:
        return self.levels.squared_scale(sigma)


def interpolated_sigma(log_sigmas: np.ndarray, place: float) -> float:
    """Return the sigma at a place among levels; between two of them linear in log sigma."""
    import numpy as np

    return exp(np.interp(place, np.arange(len(log_sigmas)), log_sigmas))


def interpolated_place(log_sigmas: np.ndarray, sigma: float) -> float:
    """Return the place of a sigma among levels, the inverse of `interpolated_sigma`."""
    import numpy as np

    return float(np.interp(log(sigma), log_sigmas, np.arange(len(log_sigmas))))
