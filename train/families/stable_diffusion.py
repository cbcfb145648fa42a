"""The training half of Stable Diffusion 1.x, 2.x and XL: images, epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from inference.models.stable_diffusion import BaseModel, frozen_dtype
from inference.runtime import ArtifactError, InputError
from train.config import LoraConfig, ObjectiveConfig, TrainRecipe
from train.families.base import (
    ExampleKind,
    FamilyTraining,
    check_no_clips_are_given,
    plain_denoising,
)
from train.losses import Denoising


class StableDiffusionTraining(FamilyTraining[BaseModel]):
    """Stable Diffusion 1.x, 2.x and XL."""

    examples: ClassVar[ExampleKind] = "pictures"
    truncates_prompts: ClassVar[bool] = False

    def check(self, recipe: TrainRecipe, base: BaseModel) -> None:
        check_no_clips_are_given(recipe)
        if base.is_inpainting_model and recipe.objective.type != "autoencoder":
            raise InputError(
                f"base_model.path: {recipe.base_model.path!r} is an inpainting model, which also "
                "looks at a mask: it is drawn with, and not trained on. Train on the plain "
                "model; what is learned works with both"
            )

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
        return plain_denoising(recipe, base)

    def idle_parts(self, base: BaseModel, has_latents: bool) -> list[str]:
        """Return the text encoders, and the VAE once latents are cached: of SDXL 1.8 GiB."""
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

    def quantization_savings(self, base: BaseModel, quantization: str) -> int:
        """Return 0: `load_base_model` rejects quantization."""
        return 0


TRAINING = StableDiffusionTraining()
