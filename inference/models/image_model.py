"""What drawing pictures asks of a base model beyond `DiffusionModel`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor

from inference.models.base import DiffusionModel
from inference.models.drawing_prompts import DrawingConditions, PromptSettings
from inference.prompts import LearnedVectors


class ImageModel(DiffusionModel):
    """A model of pictures: pixels are (b, 3, h, w), latents (b, c, h / f, w / f)."""

    tokenizer: Any
    """The one that prompts are measured by."""
    clip_skip: int
    """A1111's Clip skip; 1 where the architecture has none."""
    embeddings: dict[str, LearnedVectors]
    """Learned embeddings in use, by the names that prompts call them by."""

    @abstractmethod
    def embeddings_called(self, prompts: Sequence[str]) -> set[str]:
        """Return the names of the learned embeddings that prompts call."""

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Side in pixels of the pictures that the model was made for."""

    @property
    @abstractmethod
    def sees_masks(self) -> bool:
        """Whether the denoiser reads the mask of an inpainting, so that its weight matters."""

    @abstractmethod
    def masked_image_channels(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return the input channels beside the latents, (b, k, h, w); None if there are none.

        Args:
            pictures: for each picture its mask (1, 1, h, w), 1 where it is painted anew, and the
                latents (1, c, h, w) of what the mask leaves. Iterated over only if needed.
        """

    @property
    @abstractmethod
    def align_your_steps(self) -> Literal["SD1", "SDXL"]:
        """Table of Align Your Steps that suits the model."""

    @abstractmethod
    def encode_drawing(
        self, prompts: Sequence[str], negatives: Sequence[str], settings: PromptSettings
    ) -> DrawingConditions:
        """Encode the prompts of b pictures, in the denoiser's number format.

        Args:
            prompts: b prompts.
            negatives: b negative prompts, or none.
            settings: how they are read.

        Raises:
            InputError: a prompt cannot be read.
        """
