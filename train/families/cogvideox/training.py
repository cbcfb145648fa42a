"""The training half of CogVideoX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from inference.models import DTYPES
from inference.models.cogvideox import VideoModel, drop_learned_positions
from inference.runtime import InputError
from train.config import ObjectiveConfig, TrainRecipe, WholePartsConfig
from train.families.base import ExampleKind, FamilyTraining, check_clips_are_given
from train.families.cogvideox.clips import ClipDenoising
from train.families.cogvideox.packed import PackedDenoising
from train.losses import Denoising


class CogVideoXTraining(FamilyTraining[VideoModel]):
    """CogVideoX 1.0 and 1.5, from text or from a first frame."""

    examples: ClassVar[ExampleKind] = "clips"
    truncates_prompts: ClassVar[bool] = True

    def check(self, recipe: TrainRecipe, base: VideoModel) -> None:
        check_clips_are_given(recipe)

    def check_objective(self, config: ObjectiveConfig, base: VideoModel) -> None:
        if isinstance(config, WholePartsConfig) and config.save_as != "diffusers":
            raise InputError(
                f"objective.save_as: {base.path!r} is a video model, which no program opens as a "
                "single file; set it to diffusers"
            )

    def prepare(self, recipe: TrainRecipe, base: VideoModel) -> None:
        if recipe.drop_learned_positions:
            drop_positions(base)

    def frozen_dtype(self, recipe: TrainRecipe, base: VideoModel, part: str) -> torch.dtype:
        own = recipe.base_model.vae_precision if part == "vae" else None
        return DTYPES[own or recipe.mixed_precision]

    def loss(self, recipe: TrainRecipe, base: VideoModel) -> Denoising:
        kind = PackedDenoising if recipe.data.packs_clips else ClipDenoising
        return kind(
            base,
            recipe.loss,
            recipe.data.latent_sampling,
            recipe.seed,
            recipe.data.captions.dropout_mode == "zero_embedding",
            recipe.image_condition,
        )

    def idle_parts(self, base: VideoModel, has_latents: bool) -> list[str]:
        """Return T5, which takes 9.5 GB as XXL, and the VAE unless it encodes first frames."""
        encodes = base.is_image_to_video or not has_latents
        return ["text_encoder", *([] if encodes else ["vae"])]

    def describe_truncation(self, base: VideoModel, prompts: Sequence[str]) -> str | None:
        return base.truncation_of(prompts)

    def prompt_limits(self, base: VideoModel) -> list[int]:
        return [base.prompt_shape[0]]

    def fill_skeleton(self, base: VideoModel) -> None:
        """Leave it empty: no objective of clips reads weights."""


def drop_positions(base: VideoModel) -> None:
    """Remove the positions that a model has learned for one size.

    Raises:
        InputError: it has learned none.
    """
    if not drop_learned_positions(base.transformer):
        raise InputError(f"drop_learned_positions: {base.path!r} has learned none; leave it out")


TRAINING = CogVideoXTraining()
