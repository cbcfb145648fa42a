"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

from torch import Tensor

from inference.artifacts import Lora, LoraSpec
from inference.models import DiffusionModel
from inference.runtime import ArtifactError
from train.common import Batch, derive_seed
from train.config import LoraConfig, TrainRecipe
from train.families import build_denoising
from train.objectives.base import Objective


class LoraObjective(Objective):
    """Trains low-rank layers in the UNet or transformer, and in the text encoders if configured.

    Its parameter groups are `unet` or `transformer`, `text_encoder`, `text_encoder_2`.
    """

    def __init__(self, recipe: TrainRecipe, base: DiffusionModel) -> None:
        super().__init__(base)
        config = recipe.objective
        assert isinstance(config, LoraConfig)
        self.denoising = build_denoising(recipe, base)
        try:
            spec = LoraSpec(
                rank=config.rank,
                alpha=config.alpha,
                dropout=config.dropout,
                targets=config.targets,
                train_text_encoder=config.train_text_encoder,
                algorithm=config.algorithm,
                options=config.options,
                drops_ranks=config.dropout_on == "rank",
            )
            self.lora = Lora.create(base, spec, derive_seed(recipe.seed, "lora"))
        except ArtifactError as error:
            raise ArtifactError(f"objective.{error}") from error
        self.lora.comfyui_twin = config.comfyui_twin
        self.lora.attach(base)
        for part, modules in self.lora.modules_by_part().items():
            self.add_module(part, modules)

    def forward(self, batch: Batch) -> Tensor:
        return self.denoising.loss(batch)

    def artifact(self) -> Lora:
        return self.lora
