"""What objectives that train whole parts of the base model have in common."""

from abc import ABC

from inference.artifacts.checkpoint import Checkpoint
from inference.base_model import BaseModel
from train.config import TrainRecipe
from train.denoising import Denoising
from train.objective_configs import WholePartsConfig
from train.objectives.base import Objective


class WholeParts(Objective, ABC):
    """The UNet, and the text encoder if asked, in fp32; saved as a checkpoint."""

    def __init__(self, recipe: TrainRecipe, base: BaseModel) -> None:
        super().__init__(base)
        assert isinstance(recipe.objective, WholePartsConfig)
        self.denoising = Denoising.of(recipe, base)
        self.unet = base.unet.float().requires_grad_(True)
        if recipe.objective.train_text_encoder:
            self.text_encoder = base.text_encoder.float().requires_grad_(True)

    def artifact(self) -> Checkpoint:
        return Checkpoint.of(self.base, parts=tuple(name for name, _ in self.named_children()))
