"""Random noise of pictures: each from its own seed."""

import warnings
from collections.abc import Callable, Sequence
from math import sqrt

import torch
from torch import Tensor


class NoiseSource:
    """Fresh noise of every picture of a batch from its own generator on the CPU.

    So a picture depends on its seed and not on its neighbours or the device. The first draw is the
    noise that drawing begins with; later ones go on in the same sequence (A1111, RNG source CPU).

    Args:
        seeds: one for each picture.
        shape: of one picture's latent, (c, h, w).
        device: where the noise is needed.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds = list(seeds)
        self.shape = shape
        self.device = device
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def normal(self) -> Tensor:
        """Standard normal noise (b, c, h, w), fp32."""
        noise = [torch.randn(self.shape, generator=one) for one in self._generators]
        return torch.stack(noise).to(self.device)

    def brownian(self, sigma_min: float, sigma_max: float) -> Callable[[float, float], Tensor]:
        """A Brownian path for each picture's seed, as a function (sigma, next sigma) -> noise.

        The noise, (b, c, h, w), has variance 1 and is the path's way between two sigmas, so that
        more steps follow the same path (Li et al. 2020, arXiv 2001.01328; torchsde).
        """
        from torchsde import BrownianTree

        start = torch.zeros(self.shape)
        trees = [BrownianTree(sigma_min, start, sigma_max, entropy=seed) for seed in self.seeds]

        def way(sigma: float, next_sigma: float) -> Tensor:
            low, high = sorted((sigma, next_sigma))
            sign = 1 if next_sigma > sigma else -1
            with warnings.catch_warnings():  # that its ends are rounded to six digits
                warnings.filterwarnings("ignore", "Should have t", UserWarning)
                noise = torch.stack([tree(low, high) for tree in trees])
            return (noise * (sign / sqrt(high - low))).to(self.device)

        return way
