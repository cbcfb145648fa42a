"""Full fine-tuning of the UNet, and of the text encoders if asked."""

from torch import Tensor

from train.batch import Batch
from train.objectives.whole_parts import WholeParts


class TextToImageObjective(WholeParts):
    """Trains whole parts of the base model on pictures with captions."""

    def forward(self, batch: Batch) -> Tensor:
        return self.denoising.loss(batch)
