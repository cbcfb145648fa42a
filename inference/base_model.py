"""A base model in the SD 1.x/2.x or SDXL layout: its parts, and what is asked of it.

SDXL (Podell et al. 2023, arXiv 2307.01952) has two text encoders, and its UNet is also told a
prompt's pooled vector and the picture's sizes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inference.conditions import Conditions, encode, final_layer_norm, whole_picture
from inference.config import BaseModelConfig
from inference.errors import InputError
from inference.prompts import LearnedVectors, Tokens, tokenize

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ASSETS = Path(__file__).parent / "assets"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

SDXL_PARTS = ("text_encoder_2", "tokenizer_2")
SIZE_CONDITIONS = "text_time"
"""What the UNet's config calls the pooled vector and the sizes that SDXL's is told of."""


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
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    """SDXL's second text encoder, with the tokenizer that fills its prompts up."""

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
        return {"unet": self.unet, **self.text_encoders, "vae": self.vae}

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """One of SD 1.x and 2.x, two of SDXL, by their names in the diffusers layout."""
        encoders: dict[str, nn.Module] = {"text_encoder": self.text_encoder}
        if self.text_encoder_2 is not None:
            encoders["text_encoder_2"] = self.text_encoder_2
        return encoders

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        """One for each text encoder; they differ only in what they fill prompts up with."""
        return [self.tokenizer] if self.tokenizer_2 is None else [self.tokenizer, self.tokenizer_2]

    @property
    def has_two_text_encoders(self) -> bool:
        """Whether it is of the SDXL layout."""
        return self.text_encoder_2 is not None

    @property
    def prompt_layer(self) -> int:
        """Which layer of the text encoders is read: -1 is the last, which SDXL never takes."""
        return -self.clip_skip - self.has_two_text_encoders

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

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """What the text encoders make of prompts; states (b, chunks x 77, dim).

        One encoder: layer -clip_skip, normalised. SDXL's two: layer -(clip_skip + 1) of each, not
        normalised, and the pooled vector of the second (diffusers' StableDiffusionXLPipeline).
        Written out here since diffusers' `clip_skip` fails with transformers 5.6 and later, and
        never skips on the negative prompt, as A1111 does.
        """
        encoded = []
        for number, encoder in enumerate(self.text_encoders.values()):
            # The first tokenizer's ids for both: diffusers' second one takes every "!" for filler.
            filler = int(self.tokenizers[number].pad_token_id)
            tokens = tokenize(self.tokenizer, prompts, self.embeddings, filler)
            encoded.append(encode(encoder, tokens, self.prompt_layer, self.embeddings, number))
        if not self.has_two_text_encoders:
            return Conditions(final_layer_norm(self.text_encoder)(encoded[0].states))
        states = torch.cat([one.states for one in encoded], dim=-1)
        return Conditions(states, encoded[1].pooled)

    def predict(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """What the UNet predicts (noise or velocity) at the timesteps (b,), in its own dtype.

        Args:
            noisy_latents: (b, c, h, w).
            timesteps: (b,).
            conditions: of b prompts.
            sizes: SDXL's size conditions in pixels, (b, 6), see `whole_picture`; without them
                those of whole pictures of the latents' size. Other models pass over them.
        """
        told: dict[str, Any] = {}
        if conditions.pooled is not None:
            if sizes is None:
                height, width = (side * self.vae_scale_factor for side in noisy_latents.shape[2:])
                sizes = whole_picture(height, width).expand(len(noisy_latents), -1)
            sizes = sizes.to(noisy_latents.device, torch.float32)
            told = {"added_cond_kwargs": {"text_embeds": conditions.pooled, "time_ids": sizes}}
        return self.unet(
            noisy_latents, timesteps, encoder_hidden_states=conditions.states, **told
        ).sample


def resolve_path(path: str) -> str:
    """An embedded model's name becomes its folder; everything else stays."""
    return str(ASSETS / path) if (ASSETS / path / "model_index.json").is_file() else path


def check_layout(folder: Path, path: str) -> None:
    """Raises BaseModelError unless the folder has all parts of the SD 1.x/2.x or SDXL layout."""
    if not folder.is_dir():
        embedded = sorted(p.parent.name for p in ASSETS.glob("*/model_index.json"))
        raise BaseModelError(
            f"base_model.path: {path!r} is neither an embedded model ({', '.join(embedded)}) nor a "
            "folder, and does not look like a hub id (org/model)"
        )
    if (folder / "text_encoder_2").is_dir() and not (folder / "text_encoder").is_dir():
        raise BaseModelError(
            f"base_model.path: {path!r} is an SDXL refiner: it has only text_encoder_2, and only "
            "improves what another model drew. Name an SDXL base model, which has text_encoder too"
        )
    layout, needed = "SD 1.x/2.x", ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    if has_sdxl_layout(folder):
        layout, needed = "SDXL", (*needed, *SDXL_PARTS)
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise BaseModelError(
            f"base_model.path: {path!r} is not a diffusers folder of the {layout} layout: "
            f"{', '.join(missing)} missing"
        )


def has_sdxl_layout(folder: Path) -> bool:
    """Whether a folder has a second text encoder, or a UNet that asks for one.

    Raises:
        BaseModelError: the UNet's config.json is damaged.
    """
    if any((folder / name).is_dir() for name in SDXL_PARTS):
        return True
    file = folder / "unet" / "config.json"
    try:
        unet = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise BaseModelError(f"{file}: cannot be read as JSON: {error}") from error
    return unet.get("addition_embed_type") == SIZE_CONDITIONS


def check_parts(base: BaseModel, path: str) -> None:
    """Raises BaseModelError unless the parts that were loaded belong together."""
    if base.prediction_type not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"base_model.path: {path!r} predicts {base.prediction_type!r}; "
            "expected epsilon or v_prediction"
        )
    for name, encoder in base.text_encoders.items():
        config: Any = encoder.config
        if -base.prompt_layer > config.num_hidden_layers:
            raise BaseModelError(
                f"base_model.clip_skip: {name} has {config.num_hidden_layers} layers, and "
                f"clip_skip {base.clip_skip} asks for layer {base.prompt_layer}"
            )
    unet: Any = base.unet.config
    told = unet.addition_embed_type
    if told != (SIZE_CONDITIONS if base.has_two_text_encoders else None):
        raise BaseModelError(
            f"base_model.path: {path!r}: its UNet has addition_embed_type {told!r}; expected none "
            f"(SD 1.x/2.x), or {SIZE_CONDITIONS!r} beside text_encoder_2 (SDXL)"
        )
    if base.text_encoder_2 is None or base.tokenizer_2 is None:
        return
    room = unet.projection_class_embeddings_input_dim - base.text_encoder_2.config.projection_dim
    if room != 6 * unet.addition_time_embed_dim:
        raise BaseModelError(
            f"base_model.path: {path!r}: its UNet is told {room / unet.addition_time_embed_dim:g} "
            "numbers beside the prompt; an SDXL base model is told 6 (a refiner, which cannot be "
            "used here, 5)"
        )
    if base.tokenizer.get_vocab() != base.tokenizer_2.get_vocab():
        raise BaseModelError(
            f"base_model.path: {path!r}: tokenizer and tokenizer_2 have different vocabularies; "
            "SDXL's have the same one"
        )


def frozen_dtype(
    base: BaseModel, config: BaseModelConfig, precision: str, part: str
) -> torch.dtype:
    """The number format in which a part is frozen, and drawn with, in a run of some precision.

    SDXL's VAE overflows in fp16, which its config tells (`force_upcast`): it then stays in fp32
    (diffusers' StableDiffusionXLPipeline does so too).

    Raises:
        BaseModelError: the recipe asks for fp16 in the VAE in spite of that.
    """
    if part != "vae":
        return DTYPES[precision]
    overflows = base.has_two_text_encoders and base.vae.config.force_upcast
    if overflows and config.vae_precision == "fp16":
        raise BaseModelError(
            f"base_model.vae_precision: the VAE of {config.path!r} overflows in fp16, as its "
            "config says (force_upcast); take fp32 or bf16"
        )
    own = config.vae_precision or precision
    return DTYPES["fp32" if overflows and own == "fp16" else own]


def load_base_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> BaseModel:
    """Loads every part, frozen and in evaluation mode.

    Raises:
        BaseModelError: nothing is there, a part is missing, or its files cannot be read.
    """
    path = resolve_path(config.path)
    is_local = Path(path).is_dir() or path.count("/") != 1
    if is_local:
        check_layout(Path(path), config.path)
    try:
        base = read_parts(config, path, is_local, DTYPES[precision])
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"base_model.path: {config.path!r} cannot be loaded: {error}"
        ) from error
    check_parts(base, config.path)
    base.vae.to(frozen_dtype(base, config, precision, "vae"))
    if config.attention == "eager":
        from diffusers.models.attention_processor import AttnProcessor

        base.unet.set_attn_processor(AttnProcessor())
        for encoder in base.text_encoders.values():
            encoder.set_attn_implementation("eager")  # type: ignore[operator]
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    return base.to(device)


def read_parts(config: BaseModelConfig, path: str, is_local: bool, dtype: torch.dtype) -> BaseModel:
    """The parts as they are in a folder or on the hub; the VAE in fp32.

    Raises:
        OSError: a part is missing, or its files cannot be read.
        ValueError: a part's config is not understood.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def read(part_class: Any, part: str, **options: Any) -> Any:
        return part_class.from_pretrained(path, subfolder=part, **source, **options)

    source = {"revision": config.revision, "local_files_only": is_local}
    weights = {"variant": config.variant, "dtype": dtype}
    noise_scheduler = read(DDPMScheduler, "scheduler")
    unet = read(UNet2DConditionModel, "unet", **weights)
    base = BaseModel(
        path=config.path,
        tokenizer=read(CLIPTokenizer, "tokenizer"),
        text_encoder=read(CLIPTextModel, "text_encoder", **weights),
        vae=read(AutoencoderKL, "vae", **{**weights, "dtype": torch.float32}),
        unet=unet,
        alphas_cumprod=noise_scheduler.alphas_cumprod.float(),
        prediction_type=noise_scheduler.config.prediction_type,
        noise_schedule=dict(noise_scheduler.config),
        dtype=dtype,
        clip_skip=config.clip_skip,
    )
    if unet.config.addition_embed_type == SIZE_CONDITIONS:
        base.tokenizer_2 = read(CLIPTokenizer, "tokenizer_2")
        base.text_encoder_2 = read(CLIPTextModelWithProjection, "text_encoder_2", **weights)
    return base
