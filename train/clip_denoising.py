"""The loss of a video model: velocity, as of pictures, told what CogVideoX is told beside prompts.

Plain mean squared error of the velocity, in fp32: what CogVideoX's own trainer writes as a weighted
error of the clean latents, which loses its digits in bf16.
"""

from dataclasses import dataclass

from torch import Tensor

from inference.conditions import Conditions
from inference.video.model import VideoModel
from train.batch import Batch
from train.denoising import Denoising


@dataclass(frozen=True)
class ClipDenoising(Denoising):
    """Turns a batch of clips into one loss per example."""

    base: VideoModel

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Conditions, batch: Batch) -> Tensor:
        return self.base.predict(noisy, timesteps, states)
