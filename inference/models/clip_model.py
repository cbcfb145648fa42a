"""The interface of models that generate clips, beyond `DiffusionModel`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from inference.models.base import DiffusionModel
from inference.models.size_rules import FrameArithmetic

LatentScale = Literal["pipeline", "raw", "scaled"]
"""Scale on which a first frame's latents condition the denoiser."""


class ClipModel(DiffusionModel):
    """A video model: pixels (b, 3, f, h, w) in -1 … 1, latents (b, f', c, h', w')."""

    noise_schedule: dict[str, Any]
    block_lists: ClassVar[tuple[str, ...]]
    """Names of the lists of blocks in the denoiser."""
    tensor_format: ClassVar[str]
    """Order of the dimensions of its latents, in the words of diffusers' FasterCache."""

    @property
    @abstractmethod
    def frame_counts(self) -> FrameArithmetic:
        """Return the frame arithmetic of its VAE."""

    @property
    @abstractmethod
    def frame_ratio(self) -> int:
        """Return the frames per latent frame."""

    @property
    @abstractmethod
    def latent_frame_step(self) -> int:
        """Return the number of latent frames that windows must be multiples of."""

    @property
    @abstractmethod
    def redrawn_frame_step(self) -> int:
        """Return the number that the latent frames of video-to-video must be a multiple of."""

    @abstractmethod
    def padding(self, latent_frames: int) -> int:
        """Return the additional latent frames that are generated in front and dropped again."""

    @property
    @abstractmethod
    def fps(self) -> float:
        """Return the frames per second that it was trained for."""

    @property
    @abstractmethod
    def own_frames(self) -> int:
        """Return the frames of the clips that it was trained for."""

    @property
    @abstractmethod
    def own_size(self) -> tuple[int, int] | None:
        """Return width and height in pixels of those clips; None if it has no size of its own."""

    @abstractmethod
    def check_sources(self, given: Collection[str]) -> None:
        """Check that the model can generate from `image`, `end_image`, `video`, `control_video`.

        Raises:
            InputError: it cannot, or lacks one.
        """

    @abstractmethod
    def check_positions(self, width: int, height: int, latent_frames: int) -> str | None:
        """Return a remark on a size or length that the model was not trained at.

        Raises:
            InputError: the model has no positions for it.
        """

    @abstractmethod
    def truncation_of(self, prompts: Sequence[str]) -> str | None:
        """Return a warning about prompts with more tokens than the text encoder reads."""

    @abstractmethod
    def drop_learned_positions(self) -> bool:
        """Remove positions that were learned at one size; return whether there were any."""

    @abstractmethod
    def sample_latents(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw latents of a clip from the VAE's posterior, scaled, in the model's dtype."""

    @abstractmethod
    def frame_condition(
        self,
        first: Tensor,
        last: Tensor | None,
        latent_frames: int,
        generator: torch.Generator,
        scale: LatentScale,
    ) -> Tensor:
        """Return the conditioning on a first frame, and on a last one if given.

        Args:
            first: its pixels, (1, 3, 1, h, w).
            last: the same of the last frame.
            latent_frames: of the clip, with padding.
            generator: of the draw from the VAE's posterior.
            scale: on which the latents condition.
        """

    def decode_frames(self, latents: Tensor, finish: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """Return the frames (f, h, w, 3) of a clip.

        With other processes (`frames_shared`), the first one gets them, and the others none.

        Args:
            latents: (1, f', c, h', w').
            finish: makes frames of pixels (1, 3, f, h, w), which may be those of a part.

        Raises:
            FloatingPointError: `finish` has raised it, in any of the processes.
        """
        return finish(self.decode_latents(latents))

    @abstractmethod
    def clip_condition(self, pixels: Tensor) -> Tensor:
        """Return the conditioning on a control clip, (1, f', c, h', w')."""

    @abstractmethod
    def sequence_tokens(
        self, latent_frames: int, latent_height: int, latent_width: int, processes: int = 1
    ) -> int:
        """Return the tokens in a block of the denoiser, with those of a prompt.

        With several `processes` that compute a clip together (`divide`), those of one of them.
        """

    @property
    @abstractmethod
    def denoiser_width(self) -> int:
        """Return the values per token in the denoiser."""
