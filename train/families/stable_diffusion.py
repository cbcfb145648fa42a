"""The training half of Stable Diffusion 1.x, 2.x and XL: images, epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any, ClassVar

import torch

from inference.config import ImageConfig
from inference.models import DTYPES
from inference.models.stable_diffusion import BaseModel, frozen_dtype
from inference.runtime import ArtifactError, InputError
from train.config import LoraConfig, ObjectiveConfig, TrainRecipe
from train.families.base import (
    ExampleKind,
    FamilyTraining,
    check_no_clips_are_given,
    plain_denoising,
)
from train.families.tracing import LIVE_TENSORS, traced
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

    def activation_bytes(
        self,
        recipe: TrainRecipe,
        base: BaseModel,
        rows: int,
        shapes: Collection[tuple[int, ...]],
        is_checkpointing: bool,
    ) -> int:
        height, width = (side // base.vae_scale_factor for side in max(shapes, key=prod))
        seen = traced(base.unet, lambda: run_unet(base, rows, height, width))
        return seen.kept(is_checkpointing) * DTYPES[recipe.mixed_precision].itemsize

    def image_drawing_bytes(self, base: BaseModel, images: Sequence[ImageConfig], rows: int) -> int:
        """Return the UNet's bytes with guidance, or those of the VAE's last block if larger."""
        sides = [side or base.resolution for one in images for side in (one.width, one.height)]
        side = max(sides)
        latents = side // base.vae_scale_factor
        seen = traced(base.unet, lambda: run_unet(base, 2 * rows, latents, latents))
        decoded = rows * base.vae.config.block_out_channels[0] * side**2 * base.vae.dtype.itemsize
        return LIVE_TENSORS * max(seen.largest * base.dtype.itemsize, decoded)


def run_unet(base: BaseModel, rows: int, height: int, width: int) -> object:
    """Evaluate the UNet on the meta device, on latents (rows, c, height, width)."""
    config: Any = base.unet.config
    extra = None
    with torch.device("meta"):
        if base.text_encoder_2 is not None:
            pooled = base.text_encoder_2.config.projection_dim
            extra = {"text_embeds": torch.zeros(rows, pooled), "time_ids": torch.zeros(rows, 6)}
        latents = torch.zeros(rows, config.in_channels, height, width)
        states = torch.zeros(rows, *base.prompt_shape)
        return base.unet(latents, torch.zeros(rows), states, added_cond_kwargs=extra)


TRAINING = StableDiffusionTraining()
