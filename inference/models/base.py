"""What every latent diffusion model has in common, whether it draws pictures or clips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.files import sha256, weights_file
from inference.models.conditions import Conditions
from inference.models.names import is_single_file, resolve_path
from inference.models.size_rules import SizeRules


class DiffusionModel(ABC):
    """The parts of a latent diffusion model. Everything in it is frozen when it is loaded.

    Latents are what the denoiser sees: already multiplied by the VAE's scaling factor.
    """

    family_name: ClassVar[str]
    """Key of its model family, in inference and in training."""

    denoiser_name: ClassVar[str]
    """The part that predicts, as in the diffusers layout: `unet` or `transformer`."""

    path: str
    vae: Any
    alphas_cumprod: Tensor
    """Share of the signal's variance left at each timestep, (num_timesteps,), fp32 on the CPU."""
    prediction_type: str
    """`epsilon` or `v_prediction`."""
    noise_schedule: dict[str, object]
    """The folder's scheduler_config.json."""
    dtype: torch.dtype
    """Number format of the frozen denoiser and text encoders, and of drawing."""
    source: BaseModelConfig | None = None
    """What it was loaded by; None of one that was put together."""

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The network that predicts noise or velocity."""

    @property
    @abstractmethod
    def text_encoders(self) -> dict[str, nn.Module]:
        """By their names in the diffusers layout."""

    @property
    @abstractmethod
    def tokenizers(self) -> Sequence[Any]:
        """One for each text encoder."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts that have weights, by their names in the diffusers layout."""
        return {self.denoiser_name: self.denoiser, **self.text_encoders, "vae": self.vae}

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device  # .device walks through all its modules

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    @abstractmethod
    def size_step(self) -> int:
        """Widths and heights must be multiples of this many pixels."""

    @property
    @abstractmethod
    def sizes(self) -> SizeRules:
        """Sizes of training examples."""

    @property
    @abstractmethod
    def skips_last_text_layers(self) -> bool:
        """Whether the last layers of a text encoder take no part in drawing."""

    @property
    @abstractmethod
    def prompt_shape(self) -> tuple[int, int]:
        """Tokens and width of a usual prompt's states."""

    def to(self, device: torch.device | str) -> Self:
        for part in self.parts.values():
            part.to(device)
        return self

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, fp32 and scaled, of the latents of pixels in -1 … 1."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels, fp32, held within -1 … 1, of latents as the denoiser sees them."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """What the text encoders make of prompts."""

    @abstractmethod
    def predict(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        told: Tensor | None = None,
        /,
    ) -> Tensor:
        """What the denoiser predicts at the timesteps (b,), in its own dtype.

        `told` is what it is told beside prompts: SDXL the sizes of pictures, an image-to-video
        model the latents of first frames.
        """

    @abstractmethod
    def model_index(self, sampler: str) -> dict[str, Any]:
        """Return the content of model_index.json, `sampler` being the scheduler's class."""

    def portable_key(self, part: str, key: str) -> str:
        """Return the name of a part's weight that every tool knows."""
        return key

    @abstractmethod
    def use_eager_attention(self) -> None:
        """Spells attention out in all parts, in place of the fused one."""


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


Model = TypeVar("Model", bound=DiffusionModel)


def made_ready(base: Model, config: BaseModelConfig) -> Model:
    """With the attention that was asked for, frozen and in evaluation mode."""
    base.source = config
    if config.attention == "eager":
        base.use_eager_attention()
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    return base


def model_name(base: DiffusionModel) -> str:
    """A single file's name without its ending, as in A1111; else the folder's, or the hub's."""
    path = Path(base.path)
    return path.stem if is_single_file(path) else path.name


def model_hash(base: DiffusionModel) -> str | None:
    """SHA-256 of a single file, as in A1111; None if it is not here.

    Of a folder that of the file of the denoiser's weights (the first of several).
    """
    if is_single_file(base.path):
        return sha256(Path(base.path)) if Path(base.path).is_file() else None
    folder = Path(resolve_path(base.path)) / base.denoiser_name
    file = weights_file(folder)
    if file is None and not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        name = f"{base.denoiser_name}/diffusion_pytorch_model.safetensors"
        cached = try_to_load_from_cache(base.path, name) if base.path.count("/") == 1 else None
        file = Path(cached) if isinstance(cached, str) else None
    return sha256(file) if file else None
