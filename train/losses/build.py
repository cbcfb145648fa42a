"""The denoising loss of a recipe on its base model."""

from __future__ import annotations

from inference.models import DiffusionModel
from inference.models.cogvideox import VideoModel
from train.config import TrainRecipe
from train.losses.clips import ClipDenoising
from train.losses.denoising import Denoising
from train.losses.packed import PackedDenoising


def build_denoising(recipe: TrainRecipe, base: DiffusionModel) -> Denoising:
    """Return the loss of pictures or of clips, whichever the base model draws."""
    usual = recipe.loss, recipe.data.latent_sampling, recipe.seed
    zeroed = recipe.data.captions.dropout_mode == "zero_embedding"
    if isinstance(base, VideoModel):
        kind = PackedDenoising if recipe.data.packs_clips else ClipDenoising
        return kind(base, *usual, zeroed, recipe.image_condition)
    return Denoising(base, *usual, zeroed)


class OldDenoising(Denoising):
    """`Denoising` as plug-ins of older versions import it, with the loss of a recipe as `of`."""

    @staticmethod
    def of(recipe: TrainRecipe, base: DiffusionModel) -> Denoising:
        """Return what `build_denoising` returns."""
        return build_denoising(recipe, base)
