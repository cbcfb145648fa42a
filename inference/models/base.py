"""The shared parts of all latent diffusion models, for images and for clips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.files import sha256, weights_file
from inference.memory import (
    MemoryPlan,
    Packable,
    Packing,
    Placement,
    packed_bytes,
    quantize,
)
from inference.models.conditions import Conditions
from inference.models.names import (
    base_name,
    is_single_file,
    resolve_path,
    vae_file,
    vae_name,
)
from inference.models.parametrization import Parametrization
from inference.models.size_rules import SizeRules
from inference.runtime import BaseModelError

if TYPE_CHECKING:
    from inference.parallel import Layout, Ring


class Division(Protocol):
    """Several processes' work on the same examples."""

    def off(self) -> AbstractContextManager[None]:
        """Let each process compute whole examples inside the context."""
        ...


class DiffusionModel(ABC):
    """The parts of a latent diffusion model. Everything in it is frozen when it is loaded.

    Latents are the denoiser's inputs: already multiplied by the VAE's scaling factor.
    """

    family_name: ClassVar[str]
    """Key of its model family, in inference and in training."""

    denoiser_name: ClassVar[str]
    """The denoiser's name in the diffusers layout: `unet` or `transformer`."""

    packable: ClassVar[Packable] = Packable()
    """The layers of the denoiser that `base_model.quantization` packs; none by default."""

    path: str
    vae: Any
    prediction_type: str
    """The prediction type in its scheduler's config: `epsilon`, `v_prediction` …"""
    noise_schedule: dict[str, object]
    """The folder's scheduler_config.json."""
    dtype: torch.dtype
    """Dtype of the frozen denoiser and text encoders, and of generating."""
    source: BaseModelConfig | None = None
    """The config it was loaded from; None for one that was assembled in code."""
    placement: Placement | None = None
    """Where its parts lie; None if they are all where the denoiser is."""
    division: Division | None = None
    """How several processes compute an example together; None if each computes its own."""

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """Return the network that predicts noise or velocity."""

    @property
    @abstractmethod
    def parametrization(self) -> Parametrization:
        """Return how it is noised and what it predicts, for the loss and the samplers."""

    @property
    @abstractmethod
    def text_encoders(self) -> dict[str, nn.Module]:
        """Return the text encoders by their names in the diffusers layout."""

    @property
    @abstractmethod
    def tokenizers(self) -> Sequence[Any]:
        """Return one tokenizer for each text encoder."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that have weights, by their names in the diffusers layout."""
        return {self.denoiser_name: self.denoiser, **self.text_encoders, "vae": self.vae}

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the denoiser's blocks that gradient checkpointing recomputes, in their order."""

    @property
    def device(self) -> torch.device:
        """Return the device on which it computes, wherever its parts lie meanwhile."""
        if self.placement is not None:
            return self.placement.device
        return next(self.denoiser.parameters()).device  # .device walks through all its modules

    @property
    def vae_scale_factor(self) -> int:
        """Return the pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    @abstractmethod
    def size_step(self) -> int:
        """Return the number of pixels that widths and heights must be multiples of."""

    @property
    @abstractmethod
    def sizes(self) -> SizeRules:
        """Return the rules for sizes of training examples."""

    @property
    @abstractmethod
    def skips_last_text_layers(self) -> bool:
        """Return whether the last layers of a text encoder are unused in generating."""

    @property
    @abstractmethod
    def prompt_shape(self) -> tuple[int, int]:
        """Return tokens and width of the embeddings of a usual prompt."""

    def to(self, device: torch.device | str) -> Self:
        for part in self.parts.values():
            part.to(device)
        return self

    def place(self, device: torch.device, plan: MemoryPlan, waiting: Collection[str] = ()) -> None:
        """Move the parts to where they lie while the model computes on a device.

        Args:
            device: the device.
            plan: where weights lie.
            waiting: names of parts that are not moved.
        """
        if plan.is_plain and not waiting:
            self.to(device)
            return
        groups = {
            "text_encoders": dict(self.text_encoders),
            "denoiser": {self.denoiser_name: self.denoiser},
            "vae": {"vae": self.vae},
        }
        for group in groups.values():
            for name in waiting:
                group.pop(name, None)
        self.placement = Placement(groups, self.blocks(), device, plan)

    def settle(self, names: Collection[str]) -> None:
        """Let these parts stay on the device, and the others wait; see `Placement.settle`."""
        if self.placement is not None:
            self.placement.settle(names)

    def tidy(self) -> None:
        """Let the parts wait that were put to work beside those that stay on the device."""
        if self.placement is not None:
            self.placement.settle(self.placement.stays)

    @contextmanager
    def parts_alone(self) -> Iterator[None]:
        """Let each part be on the device alone inside the context; see `Placement.alone`."""
        if self.placement is None:
            yield
            return
        with self.placement.alone():
            yield

    @contextmanager
    def frames_shared(self, ring: Ring | None) -> Iterator[None]:
        """Encode and decode clips together with the processes of a ring inside the context.

        Images have no frames that could be shared.
        """
        yield

    @abstractmethod
    def check_context(self, processes: int) -> None:
        """Check that several processes can compute an example together.

        Raises:
            InputError: they cannot, or not so many.
        """

    @abstractmethod
    def divide(self, layout: Layout) -> None:
        """Let the processes along context compute each example together from now on.

        All processes call this together, once the parts are on their device.

        Raises:
            InputError: as `check_context`.
        """

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Let each process compute examples of its own inside the context, without the others."""
        if self.division is None:
            yield
            return
        with self.division.off():
            yield

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels in -1 … 1: mean and standard deviation of their scaled latents, fp32."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents as the denoiser sees them to pixels, fp32, clamped to -1 … 1."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """Return the prompt embeddings."""

    @abstractmethod
    def predict(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        extra: Tensor | None = None,
        /,
    ) -> Tensor:
        """Return the denoiser's prediction at the timesteps (b,), in its own dtype.

        `extra` is the conditioning besides prompts: image sizes for SDXL, the latents of first
        frames for an image-to-video model.
        """

    @abstractmethod
    def model_index(self, sampler: str) -> dict[str, Any]:
        """Return the content of model_index.json, `sampler` being the scheduler's class."""

    def portable_key(self, part: str, key: str) -> str:
        """Return the name of a part's weight that every tool can read."""
        return key

    @abstractmethod
    def use_eager_attention(self) -> None:
        """Compute attention explicitly in all parts, instead of with the fused kernel."""


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def weight_dtype(part: Any, path: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a part's weight where the part has `dtype`: some must stay fp32.

    As `from_pretrained` of diffusers and of transformers loads them, which name these layers:
    `_keep_in_fp32_modules`, in transformers for fp16 alone, and `_keep_in_fp32_modules_strict`.
    """
    kept = [*(getattr(part, "_keep_in_fp32_modules_strict", None) or ())]
    if dtype == torch.float16 or not hasattr(part, "_keep_in_fp32_modules_strict"):
        kept += getattr(part, "_keep_in_fp32_modules", None) or ()
    is_kept = any(f".{name}." in f".{path}." for name in kept)
    return torch.float32 if is_kept else dtype


def cast_part(part: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of a part, as far as they need not stay fp32; see `weight_dtype`."""
    for path, tensor in (*part.named_parameters(), *part.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(weight_dtype(part, path, dtype))


def quantize_denoiser(base: DiffusionModel, kind: Packing, dtype: torch.dtype) -> None:
    """Pack the weights of a denoiser's large layers, on the CPU.

    Args:
        base: with plain weights on the CPU.
        kind: `base_model.quantization`.
        dtype: dtype that the layers compute in.

    Raises:
        BaseModelError: its family has no such layers, or bitsandbytes cannot be imported.
    """
    paths = [path for path, _ in base.packable.layers(base.denoiser, kind)]
    if not paths:
        raise BaseModelError(
            f"base_model.quantization: {kind} packs no layer of {base.path!r}, whose model family "
            "names none; leave it out"
        )
    quantize(base.denoiser, kind, dtype, paths)


def quantization_savings(base: DiffusionModel, kind: Packing) -> int:
    """Return the bytes that quantization saves in the denoiser's weights, as they are now."""
    return sum(savings_by_layer(base, kind).values())


def savings_by_layer(base: DiffusionModel, kind: Packing) -> dict[nn.Module, int]:
    """Return the bytes that quantization saves in each layer of the denoiser that it packs."""
    layers: list[Any] = [layer for _, layer in base.packable.layers(base.denoiser, kind)]
    return {layer: layer.weight.nbytes - packed_bytes(layer, kind) for layer in layers}


Model = TypeVar("Model", bound=DiffusionModel)


def made_ready(base: Model, config: BaseModelConfig) -> Model:
    """Set the attention as configured, freeze the model, and set evaluation mode."""
    base.source = config
    if config.attention == "eager":
        base.use_eager_attention()
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    return base


def model_name(base: DiffusionModel) -> str:
    """Return a single file's name without suffix, as in A1111; else the folder's or the hub's."""
    name = base_name(base.path)
    return Path(name).stem if is_single_file(name) else name


def vae_of(base: DiffusionModel) -> tuple[str, str] | None:
    """Return name and SHA-256 of the VAE that replaces a model's own; None for its own."""
    path = base.source.vae if base.source is not None else None
    file = vae_file(path) if path is not None else None
    return (vae_name(path), sha256(file)) if path is not None and file is not None else None


LOW_BITS: Mapping[Packing, str] = {"fp8": "float8-e4m3fn", "int8": "int8", "nf4": "bnb-nf4"}
"""Forge's names of quantized formats, in the parameter `Diffusion in Low Bits` of infotext."""


def low_bits(base: DiffusionModel) -> str | None:
    """Return the name of a base model's quantized format in Forge; None if it is not quantized."""
    packing = base.source.quantization if base.source is not None else None
    return None if packing is None else LOW_BITS[packing]


def model_hash(base: DiffusionModel) -> str | None:
    """Return the SHA-256 of a single file, as in A1111; None if it is not here.

    For a folder, that of the file with the denoiser's weights (the first of several).
    """
    path = weights_path(base)
    return sha256(path) if path else None


def weights_path(base: DiffusionModel) -> Path | None:
    """Return the file by whose hash a model is known: its own, or that of a folder's denoiser."""
    if is_single_file(base.path):
        return Path(base.path) if Path(base.path).is_file() else None
    folder = Path(resolve_path(base.path)) / base.denoiser_name
    file = weights_file(folder)
    if file is None and not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        name = f"{base.denoiser_name}/diffusion_pytorch_model.safetensors"
        cached = try_to_load_from_cache(base.path, name) if base.path.count("/") == 1 else None
        file = Path(cached) if isinstance(cached, str) else None
    return file
