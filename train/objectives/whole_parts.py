"""What objectives that train whole parts of the base model have in common."""

from abc import ABC

from inference.artifacts.checkpoint import Checkpoint
from inference.diffusion_model import DiffusionModel
from inference.errors import InputError
from train.config import TrainRecipe
from train.denoising import Denoising
from train.objective_configs import WholePartsConfig
from train.objectives.base import Objective


class WholeParts(Objective, ABC):
    """The UNet or transformer, and the text encoder if asked, in fp32; saved as a checkpoint."""

    def __init__(self, recipe: TrainRecipe, base: DiffusionModel) -> None:
        super().__init__(base)
        assert isinstance(recipe.objective, WholePartsConfig)
        check_video(recipe.objective, base)
        self.denoising = Denoising.of(recipe, base)
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


def check_video(config: WholePartsConfig, base: DiffusionModel) -> None:
    """Raises InputError for what is asked of a video model and cannot be had."""
    if base.denoiser_name != "transformer":
        return
    if config.save_as != "diffusers":
        raise InputError(
            f"objective.save_as: {base.path!r} is a video model, which no program opens as a "
            "single file; set it to diffusers"
        )
