"""The shared base of objectives that train whole parts of the base model."""

from abc import ABC

import torch
from torch import Tensor

from inference.artifacts import Checkpoint
from inference.models import DiffusionModel
from train.common import Batch
from train.config import DreamboothConfig, TrainRecipe, WholePartsConfig
from train.families import build_denoising
from train.objectives.base import Objective


class WholeParts(Objective, ABC):
    """The fp32 UNet or transformer, and the text encoder if configured; saved as a checkpoint."""

    def __init__(self, recipe: TrainRecipe, base: DiffusionModel) -> None:
        super().__init__(base)
        assert isinstance(recipe.objective, WholePartsConfig)
        self.denoising = build_denoising(recipe, base)
        self.add_module(base.denoiser_name, base.denoiser.float().requires_grad_(True))
        self.suffix = "" if recipe.objective.save_as == "diffusers" else ".safetensors"
        if recipe.objective.train_text_encoder:
            for name, encoder in base.text_encoders.items():
                self.add_module(name, encoder.float().requires_grad_(True))

    def artifact(self) -> Checkpoint:
        parts = tuple(name for name, _ in self.named_children())
        checkpoint = Checkpoint.of(self.base, parts)
        checkpoint.suffix = self.suffix
        return checkpoint


class DreamboothObjective(WholeParts):
    """Trains the UNet throughout, and the text encoder for the first part of the run."""

    def __init__(self, recipe: TrainRecipe, base: DiffusionModel) -> None:
        super().__init__(recipe, base)
        config = recipe.objective
        assert isinstance(config, DreamboothConfig)
        share = config.stop_text_encoder_training if config.train_text_encoder else 1.0
        self.text_encoder_steps = max(1, round(share * recipe.max_train_steps))
        """Optimizer steps in which the text encoder is trained."""
        self.stops_parts = self.text_encoder_steps < recipe.max_train_steps

    def forward(self, batch: Batch) -> Tensor:
        if self.stops_parts and batch["step"] >= self.text_encoder_steps:
            with torch.no_grad():
                states = self.base.encode_prompts(batch["prompts"])
            batch = {**batch, "prompt_states": states}
        return self.denoising.loss(batch)


class TextToImageObjective(WholeParts):
    """Trains whole parts of the base model on images with captions."""

    def forward(self, batch: Batch) -> Tensor:
        return self.denoising.loss(batch)
