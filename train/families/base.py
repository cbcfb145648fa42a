"""The training half of a model family. The other half, `inference.models`, never imports it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, TypeVar

import torch

from inference.models import DiffusionModel
from inference.runtime import InputError
from train.config import OBJECTIVE_CONFIGS, ObjectiveConfig, TrainRecipe
from train.losses import Denoising

ExampleKind = Literal["pictures", "clips"]
"""The data of a family: decides on the examples and the previews."""

Model = TypeVar("Model", bound=DiffusionModel)


class FamilyTraining(ABC, Generic[Model]):
    """The training half of a model family. It has no state: one object serves all models."""

    examples: ClassVar[ExampleKind]
    truncates_prompts: ClassVar[bool]
    """Whether the end of a long prompt is lost; otherwise it is encoded in chunks."""

    # The supported training

    @abstractmethod
    def check(self, recipe: TrainRecipe, base: Model) -> None:
        """Check that the model can be trained with the recipe's objective and data.

        Raises:
            InputError: it cannot.
        """

    @abstractmethod
    def check_objective(self, config: ObjectiveConfig, base: Model) -> None:
        """Check the options of an objective, or of a member of a combined one.

        Raises:
            InputError: the model does not support one of them.
        """

    @abstractmethod
    def prepare(self, recipe: TrainRecipe, base: Model) -> None:
        """Change the loaded model, before its weights are packed, as the recipe requires.

        Raises:
            InputError: the model does not support it.
        """

    @abstractmethod
    def frozen_dtype(self, recipe: TrainRecipe, base: Model, part: str) -> torch.dtype:
        """Return the dtype of a part that is not trained.

        Raises:
            InputError: the recipe requests a dtype that the part does not support.
        """

    @abstractmethod
    def loss(self, recipe: TrainRecipe, base: Model) -> Denoising:
        """Return the loss of a recipe."""

    # Caches

    @abstractmethod
    def idle_parts(self, base: Model, has_latents: bool) -> list[str]:
        """Return the parts that a step does not use, once prompt embeddings are cached.

        Args:
            base: the model.
            has_latents: whether latents are cached too.
        """

    @abstractmethod
    def describe_truncation(self, base: Model, prompts: Sequence[str]) -> str | None:
        """Return a warning about prompts that are longer than the text encoder reads, if any."""

    # The plan. The model is on the meta device.

    @abstractmethod
    def prompt_limits(self, base: Model) -> list[int]:
        """Return the tokens that each text encoder reads at once, in the tokenizers' order."""

    @abstractmethod
    def fill_skeleton(self, base: Model) -> None:
        """Initialize the weights that objectives read when they are built."""


def check_clips_are_given(recipe: TrainRecipe) -> None:
    """Check that objective and data are those of a family that is trained on clips.

    Raises:
        InputError: they are not.
    """
    path, kind = recipe.base_model.path, recipe.objective
    if not kind.learns_clips:
        known = ", ".join(name for name, one in OBJECTIVE_CONFIGS.items() if one.learns_clips)
        raise InputError(
            f"objective.type: {kind.type} cannot be trained on {path!r}, a video model; {known} can"
        )
    if recipe.data.clips is None:
        raise InputError(
            f"data.clips: must be given, as data.clips.frames=49: {path!r} is a video model"
        )


def check_no_clips_are_given(recipe: TrainRecipe) -> None:
    """Check that the data are those of a family that is trained on images.

    Raises:
        InputError: they are not.
    """
    if recipe.data.clips is not None:
        path = recipe.base_model.path
        raise InputError(f"data.clips: are for video models; {path!r} is a model of pictures")


def plain_denoising(
    recipe: TrainRecipe, base: DiffusionModel, kind: type[Denoising] = Denoising
) -> Denoising:
    """Return the loss of a family that has no options of its own for it."""
    return kind(
        base,
        recipe.loss,
        recipe.data.latent_sampling,
        recipe.seed,
        recipe.data.captions.dropout_mode == "zero_embedding",
    )
