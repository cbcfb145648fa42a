"""Full fine-tuning of the UNet, and of the text encoders if asked."""

from torch import Tensor

from inference.artifacts.checkpoint import Checkpoint
from inference.base_model import BaseModel
from train.batch import Batch
from train.config import TrainRecipe
from train.denoising import Denoising
from train.objective_configs import TextToImageConfig
from train.objectives.base import Objective


class TextToImageObjective(Objective):
    """Trains whole parts of the base model on pictures with captions."""

    def __init__(self, recipe: TrainRecipe, base: BaseModel) -> None:
        super().__init__(base)
        assert isinstance(recipe.objective, TextToImageConfig)
        self.denoising = Denoising.of(recipe, base)
        self.unet = base.unet.float().requires_grad_(True)
        self.suffix = "" if recipe.objective.save_as == "diffusers" else ".safetensors"
        if recipe.objective.train_text_encoder:
            for name, encoder in base.text_encoders.items():
                self.add_module(name, encoder.float().requires_grad_(True))

    def forward(self, batch: Batch) -> Tensor:
        return self.denoising.loss(batch)

    def artifact(self) -> Checkpoint:
        parts = tuple(name for name, _ in self.named_children())
        checkpoint = Checkpoint.of(self.base, parts)
        checkpoint.suffix = self.suffix
        return checkpoint
