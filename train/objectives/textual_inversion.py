"""Textual inversion (Gal et al. 2022, arXiv 2208.01618)."""

from typing import Any

import torch
from torch import Tensor

from inference.artifacts import Embedding, check_suffix
from train.common import Batch, own_rows
from train.config import TextualInversionConfig, TrainRecipe
from train.families import build_denoising
from train.objectives.base import Objective


class TextualInversionObjective(Objective):
    """Trains the vectors of one name; everything else is frozen."""

    def __init__(self, recipe: TrainRecipe, base: Any) -> None:
        super().__init__(base)
        config = recipe.objective
        assert isinstance(config, TextualInversionConfig)
        self.denoising = build_denoising(recipe, base)
        self.learned = Embedding.create(
            base, config.token, config.initialization_text, config.num_vectors_per_token
        )
        self.learned.suffix = f".{config.save_as}"
        check_suffix(self.learned.suffix, self.learned.learned)
        self.embedding = self.learned.learned.requires_grad_(True)
        self.max_norm = config.max_norm
        self.learned.attach(base)

    def forward(self, batch: Batch) -> Tensor:
        return self.denoising.loss(batch) + self.unused()

    def unused(self) -> Tensor:
        """Return zero with gradients: captions need not contain the trigger word."""
        return 0.0 * torch.stack([vectors.sum() for vectors in self.embedding.by_encoder()]).sum()

    def after_step(self) -> None:
        """Limit each vector's length to `max_norm`."""
        if self.max_norm is not None:
            with torch.no_grad():
                for vectors in self.embedding.by_encoder():
                    own_rows(vectors).renorm_(2, 0, self.max_norm)

    def artifact(self) -> Embedding:
        return self.learned
