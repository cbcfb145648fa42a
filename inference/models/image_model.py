"""The interface of models that generate images, beyond `DiffusionModel`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from inference.models.base import DiffusionModel
from inference.models.drawing_prompts import DrawingConditions, PromptSettings
from inference.prompts import LearnedVectors
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.parallel import Layout


class ImageModel(DiffusionModel):
    """An image model: pixels are (b, 3, h, w), latents (b, c, h / f, w / f)."""

    tokenizer: Any
    """The tokenizer that measures the length of prompts."""
    clip_skip: int
    """A1111's Clip skip; 1 if the architecture has none."""
    embeddings: dict[str, LearnedVectors]
    """Active embeddings, by their names in prompts."""

    def check_context(self, processes: int) -> None:
        raise InputError(
            f"parallel.context: is for the frames of video models, and {self.path!r} draws single "
            "pictures; leave it out, then the processes have pictures of their own"
        )

    def divide(self, layout: Layout) -> None:
        self.check_context(layout.context)

    @abstractmethod
    def embeddings_called(self, prompts: Sequence[str]) -> set[str]:
        """Return the names of the embeddings that prompts call."""

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Return the side in pixels of the images that the model was trained for."""

    @property
    @abstractmethod
    def sees_masks(self) -> bool:
        """Return whether the denoiser reads the inpainting mask, so that its weight matters."""

    @abstractmethod
    def masked_image_channels(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return the input channels beside the latents, (b, k, h, w); None if there are none.

        Args:
            pictures: for each image its mask (1, 1, h, w), 1 in the repainted area, and the
                latents (1, c, h, w) of the unmasked part. Iterated over only if needed.
        """

    @property
    @abstractmethod
    def align_your_steps(self) -> Literal["SD1", "SDXL"]:
        """Return the Align Your Steps table for the model."""

    @abstractmethod
    def encode_drawing(
        self, prompts: Sequence[str], negatives: Sequence[str], settings: PromptSettings
    ) -> DrawingConditions:
        """Encode the prompts of b images, in the denoiser's dtype.

        Args:
            prompts: b prompts.
            negatives: b negative prompts, or none.
            settings: how they are read.

        Raises:
            InputError: a prompt cannot be read.
        """
