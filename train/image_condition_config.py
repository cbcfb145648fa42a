"""The typed recipe of what an image-to-video model is told of a clip's first frame."""

from dataclasses import dataclass
from typing import Literal

from train.faults import Faults, fraction


@dataclass
class ImageConditionConfig:
    """The first frame as a condition (CogVideoX's image-to-video models only)."""

    noise_mean: float = -3.0
    """The frame is told with noise of strength exp(N(noise_mean, noise_std^2)), about 0.05, so that
    drawing forgives a picture's flaws (Yang et al. 2024, arXiv 2408.06072, appendix D)."""
    noise_std: float = 0.5
    """See noise_mean."""
    noise: bool = True
    """Whether there is noise on it."""
    dropout_rate: float = 0.05
    """Share of examples that are told no frame (zeros)."""
    latent_scale: Literal["pipeline", "raw", "scaled"] = "pipeline"
    """On which scale the frame's latents are told. `pipeline` is what diffusers draws with; SAT's
    trainer has `scaled` and its drawing `raw` for CogVideoX 1.5, where the three differ."""

    def faults(self) -> Faults:
        yield from fraction(dropout_rate=self.dropout_rate)
        if self.noise_std < 0:
            yield "noise_std", f"must be at least 0, got {self.noise_std}"

    def idle(self) -> Faults:
        if not self.noise and (self.noise_mean, self.noise_std) != (-3.0, 0.5):
            yield "noise_mean", "has no effect with noise: false"
