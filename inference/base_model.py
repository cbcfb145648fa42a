"""A base model in the SD 1.x/2.x layout: its parts, and what drawing and training ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.errors import InputError
from inference.prompts import LearnedVectors, Tokens, put_in, tokenize

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

ASSETS = Path(__file__).parent / "assets"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class BaseModelError(InputError):
    """The base model named in the recipe cannot be used; says what was found and what helps."""


@dataclass
class BaseModel:
    """The parts of a latent diffusion model. Everything in it is frozen when it is loaded.

    Latents are what the UNet sees: already multiplied by the VAE's scaling factor.
    """

    path: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    """Share of the signal's variance left at each timestep, (num_timesteps,), fp32 on the CPU."""
    prediction_type: str
    """`epsilon` or `v_prediction`."""
    noise_schedule: dict[str, object]
    """The folder's scheduler_config.json."""
    dtype: torch.dtype
    """Number format of the frozen UNet and text encoder, and of drawing."""
    clip_skip: int = 1
    embeddings: dict[str, LearnedVectors] = field(default_factory=dict)
    """Learned embeddings that work now, by the names that prompts call them by."""

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device  # unet.device walks through all its modules

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_step(self) -> int:
        """Widths and heights must be multiples of this many pixels."""
        return self.vae_scale_factor

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts that have weights, by their names in the diffusers layout."""
        return {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}

    def to(self, device: torch.device | str) -> BaseModel:
        for part in self.parts.values():
            part.to(device)
        return self

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pixels (b, 3, h, w) in -1 … 1.

        Both are fp32, (b, c, h / f, w / f), scaled as the UNet sees them.
        """
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        factor = self.vae.config.scaling_factor
        shift = self.vae.config.shift_factor or 0.0
        return (posterior.mean.float() - shift) * factor, posterior.std.float() * factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels (b, 3, h, w), fp32, held within -1 … 1, of latents as the UNet sees them."""
        shift = self.vae.config.shift_factor or 0.0
        latents = latents / self.vae.config.scaling_factor + shift
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Token ids in chunks of 75 tokens as in A1111, and where learned embeddings stand."""
        return tokenize(self.tokenizer, prompts, self.embeddings)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The text encoder's states (b, chunks x 77, dim): layer -clip_skip, normalised.

        Written out here since diffusers' `clip_skip` fails with transformers 5.6 and later, and
        never skips on the negative prompt, as A1111 does.
        """
        tokens = self.tokenize(prompts)
        batch, chunks, length = tokens.ids.shape
        table = self.text_encoder.get_input_embeddings()
        with put_in(table, tokens, self.embeddings):
            output = self.text_encoder(
                tokens.ids.to(self.device).view(-1, length), output_hidden_states=True
            )
        inner = getattr(self.text_encoder, "text_model", self.text_encoder)
        states = inner.final_layer_norm(output.hidden_states[-self.clip_skip])
        return states.reshape(batch, chunks * length, -1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, prompt_states: Tensor) -> Tensor:
        """What the UNet predicts (noise or velocity) at the timesteps (b,), in its own dtype."""
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=prompt_states).sample


def resolve_path(path: str) -> str:
    """An embedded model's name becomes its folder; everything else stays."""
    return str(ASSETS / path) if (ASSETS / path / "model_index.json").is_file() else path


def is_single_file(path: str | Path) -> bool:
    """Whether a path is named as single files (`.safetensors`, `.ckpt`) are."""
    return str(path).lower().endswith((".safetensors", ".ckpt"))


def check_layout(folder: Path, path: str) -> None:
    """Raises BaseModelError unless the folder has all parts of the SD 1.x/2.x layout."""
    if not folder.is_dir():
        embedded = sorted(p.parent.name for p in ASSETS.glob("*/model_index.json"))
        raise BaseModelError(
            f"base_model.path: {path!r} is neither an embedded model ({', '.join(embedded)}) nor a "
            "folder, and does not look like a hub id (org/model)"
        )
    needed = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise BaseModelError(
            f"base_model.path: {path!r} is not a diffusers folder of the SD 1.x/2.x layout: "
            f"{', '.join(missing)} missing"
        )


def load_base_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> BaseModel:
    """Loads every part, frozen and in evaluation mode.

    Raises:
        BaseModelError: nothing is there, a part is missing, or its files cannot be read.
    """
    path = resolve_path(config.path)
    if is_single_file(path):
        from inference.single_file import read_base_model

        vae_dtype = DTYPES[config.vae_precision or precision]
        base = read_base_model(config, DTYPES[precision], vae_dtype)
    else:
        base = read_folder(path, config, precision)
    return prepare(base, config).to(device)


def read_folder(path: str, config: BaseModelConfig, precision: str) -> BaseModel:
    """A base model's parts from a diffusers folder or the hub."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    is_local = Path(path).is_dir() or path.count("/") != 1
    if is_local:
        check_layout(Path(path), config.path)
    source = {"revision": config.revision, "local_files_only": is_local}
    weights = {**source, "variant": config.variant, "dtype": DTYPES[precision]}
    vae_precision = config.vae_precision or precision
    vae_weights = {**weights, "dtype": DTYPES[vae_precision]}
    try:
        noise_scheduler = DDPMScheduler.from_pretrained(path, subfolder="scheduler", **source)
        return BaseModel(
            path=config.path,
            tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", **source),
            text_encoder=CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **weights),
            vae=AutoencoderKL.from_pretrained(path, subfolder="vae", **vae_weights),
            unet=UNet2DConditionModel.from_pretrained(path, subfolder="unet", **weights),
            alphas_cumprod=noise_scheduler.alphas_cumprod.float(),
            prediction_type=noise_scheduler.config.prediction_type,
            noise_schedule=dict(noise_scheduler.config),
            dtype=DTYPES[precision],
            clip_skip=config.clip_skip,
        )
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"base_model.path: {config.path!r} cannot be loaded: {error}"
        ) from error


def prepare(base: BaseModel, config: BaseModelConfig) -> BaseModel:
    """Checks what was read, and freezes it in evaluation mode."""
    from diffusers.models.attention_processor import AttnProcessor

    if base.prediction_type not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"base_model.path: {config.path!r} predicts {base.prediction_type!r}; "
            "expected epsilon or v_prediction"
        )
    layers = base.text_encoder.config.num_hidden_layers
    if config.clip_skip > layers:
        raise BaseModelError(f"base_model.clip_skip: the text encoder has {layers} layers")
    if config.attention == "eager":
        base.unet.set_attn_processor(AttnProcessor())
        base.text_encoder.set_attn_implementation("eager")
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    return base
