"""The training half of Stable Diffusion 1.x, 2.x and XL: images, epsilon or v-prediction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch

from inference.models.stable_diffusion import AESTHETIC_SCORE, BaseModel, frozen_dtype
from inference.recipe import RecipeWarning
from inference.runtime import ArtifactError
from train.config import ExampleConfig, LoraConfig, ObjectiveConfig, TrainRecipe
from train.families.base import (
    ExampleKind,
    FamilyTraining,
    check_no_clips_are_given,
    plain_denoising,
)
from train.losses import Denoising, InpaintingDenoising


class StableDiffusionTraining(FamilyTraining[BaseModel]):
    """Stable Diffusion 1.x, 2.x and XL."""

    examples: ClassVar[ExampleKind] = "pictures"
    truncates_prompts: ClassVar[bool] = False

    def check(self, recipe: TrainRecipe, base: BaseModel) -> None:
        check_no_clips_are_given(recipe)
        data, path = recipe.data, recipe.base_model.path
        if data.inpainting_masks is not None and not base.is_inpainting_model:
            warn(f"data.inpainting_masks: has no effect: {path!r} is no inpainting model")
        parts: list[ExampleConfig] = [data, *data.named_subsets.values()]
        if any(one.aesthetic_score != AESTHETIC_SCORE for one in parts) and not base.is_refiner:
            warn(f"data.aesthetic_score: has no effect: {path!r} is not SDXL's refiner")

    def check_objective(self, config: ObjectiveConfig, base: BaseModel) -> None:
        if isinstance(config, LoraConfig) and config.comfyui_twin:
            raise ArtifactError(
                f"objective.comfyui_twin: goes with video models; {base.path!r} is one of "
                "pictures, whose LoRAs ComfyUI reads as they are"
            )

    def prepare(self, recipe: TrainRecipe, base: BaseModel) -> None:
        """Leave the model as it was loaded."""

    def frozen_dtype(self, recipe: TrainRecipe, base: BaseModel, part: str) -> torch.dtype:
        return frozen_dtype(base, recipe.base_model, recipe.mixed_precision, part)

    def loss(self, recipe: TrainRecipe, base: BaseModel) -> Denoising:
        kind = InpaintingDenoising if base.is_inpainting_model else Denoising
        return plain_denoising(recipe, base, kind)

    def idle_parts(self, base: BaseModel, has_latents: bool) -> list[str]:
        """Return the text encoders, and the VAE once latents are cached: of SDXL 1.8 GiB.

        For an inpainting model the VAE encodes masked images in every step.
        """
        has_latents = has_latents and not base.is_inpainting_model
        return [*base.text_encoders, *(["vae"] if has_latents else [])]

    def describe_truncation(self, base: BaseModel, prompts: Sequence[str]) -> str | None:
        """Return None: long prompts are encoded in chunks."""
        return None

    def prompt_limits(self, base: BaseModel) -> list[int]:
        return [int(one.model_max_length) for one in base.tokenizers]

    def fill_skeleton(self, base: BaseModel) -> None:
        """Initialize the token embeddings, which new tokens copy."""
        for encoder in base.text_encoders.values():
            encoder.get_input_embeddings().to_empty(device="cpu")  # type: ignore[operator]


def warn(what: str) -> None:
    """Warn about an option of a recipe."""
    warnings.warn(what, RecipeWarning, stacklevel=3)


TRAINING = StableDiffusionTraining()
