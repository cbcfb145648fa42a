"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242), with A1111's stop of the text encoder.

The class pictures and their share of the loss belong to data and loss, so that every objective can
have them; here is only what is trained.
"""

import torch
from torch import Tensor

from inference.base_model import BaseModel
from train.batch import Batch
from train.config import TrainRecipe
from train.objective_configs import DreamboothConfig
from train.objectives.whole_parts import WholeParts


class DreamboothObjective(WholeParts):
    """Trains the UNet throughout, and the text encoder for the first part of the run."""

    def __init__(self, recipe: TrainRecipe, base: BaseModel) -> None:
        super().__init__(recipe, base)
        config = recipe.objective
        assert isinstance(config, DreamboothConfig)
        share = config.stop_text_encoder_training if config.train_text_encoder else 1.0
        self.text_encoder_steps = max(1, round(share * recipe.max_train_steps))
        """Optimizer steps in which the text encoder learns."""
        self.stops_parts = self.text_encoder_steps < recipe.max_train_steps

    def forward(self, batch: Batch) -> Tensor:
        if self.stops_parts and batch["step"] >= self.text_encoder_steps:
            with torch.no_grad():
                states = self.base.encode_prompts(batch["prompts"])
            batch = {**batch, "prompt_states": states}
        return self.denoising.loss(batch)
