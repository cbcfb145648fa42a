"""A base model in the SD 1.x/2.x or SDXL layout.

SDXL (Podell et al. 2023, arXiv 2307.01952) has two text encoders, and its UNet is also conditioned
on a prompt's pooled embedding and the image's sizes. SDXL's refiner has only the second encoder,
and its UNet is conditioned on an aesthetic score instead of the image's own size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from inference.memory import Packable
from inference.models.conditions import Conditions, Encoded, encode, final_layer_norm, whole_picture
from inference.models.drawing_prompts import DrawingConditions, PromptSettings
from inference.models.image_model import ImageModel
from inference.models.names import resolve_path
from inference.models.parametrization import DiscreteVP, discrete_vp
from inference.models.size_rules import SizeRules
from inference.models.stable_diffusion.prompts import encode_drawing_prompts
from inference.prompts import Chunk, LearnedVectors, PromptChunker, Tokens, assemble, tokenize

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


SDXL_PARTS = ("text_encoder_2", "tokenizer_2")
SIZE_CONDITIONS = "text_time"
"""The name of SDXL's conditioning on pooled embedding and sizes in the UNet's config."""
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""The aesthetic scores that the refiner draws by, of prompts and of negative prompts: those of
diffusers' StableDiffusionXLImg2ImgPipeline, and A1111's `sdxl_refiner_high_aesthetic_score` and
`sdxl_refiner_low_aesthetic_score`."""


@dataclass
class BaseModel(ImageModel):
    """An image model: pixels are (b, 3, h, w), latents (b, c, h / f, w / f)."""

    family_name: ClassVar[str] = "stable_diffusion"
    denoiser_name: ClassVar[str] = "unet"
    packable: ClassVar[Packable] = Packable(
        linear=(".attn1.", ".attn2.", ".ff."),
        convolutions=(".conv1.", ".conv2.", ".conv_shortcut."),  # of the resnets
    )

    path: str
    tokenizer: CLIPTokenizer
    """Splits the prompts; of a refiner it is built from `tokenizer_2` (`splitting_tokenizer`)."""
    text_encoder: CLIPTextModel | None
    """None in SDXL's refiner."""
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    """Signal's share of the variance at each timestep, (num_timesteps,), fp32 on the CPU."""
    prediction_type: str
    noise_schedule: dict[str, object]
    dtype: torch.dtype
    clip_skip: int = 1
    embeddings: dict[str, LearnedVectors] = field(default_factory=dict)
    """Active embeddings, by their names in prompts."""
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    """SDXL's second text encoder, with the tokenizer that pads its prompts."""

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    def blocks(self) -> list[nn.Module]:
        return unet_blocks(self.unet)

    @property
    def parametrization(self) -> DiscreteVP:
        return discrete_vp(self.alphas_cumprod, self.prediction_type)

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor

    @property
    def sizes(self) -> SizeRules:
        return SizeRules(
            self.size_step,
            self.resolution,
            self.resolution,
            takes_masks=self.is_inpainting_model,
            takes_scores=self.is_refiner,
        )

    @property
    def resolution(self) -> int:
        """Return the side in pixels of the images that the model was trained for."""
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """Return one text encoder for SD 1.x and 2.x, two for SDXL, by diffusers' name."""
        both = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: one for name, one in both.items() if one is not None}

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        """Return one tokenizer for each text encoder; they differ only in their padding."""
        if self.tokenizer_2 is None:
            return [self.tokenizer]
        return [self.tokenizer_2] if self.is_refiner else [self.tokenizer, self.tokenizer_2]

    @property
    def has_pooled_prompts(self) -> bool:
        """Return whether it has the SDXL layout, or that of SDXL's refiner."""
        return self.text_encoder_2 is not None

    @property
    def is_refiner(self) -> bool:
        """Return whether it is SDXL's refiner, which lacks the first text encoder."""
        return self.text_encoder is None

    @property
    def aesthetic_scores(self) -> tuple[float, float] | None:
        """Return the scores that prompts and negative prompts ask a refiner for."""
        return (AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE) if self.is_refiner else None

    @property
    def is_inpainting_model(self) -> bool:
        """Return whether the UNet also reads a mask and masked latents: 4 + 1 + 4 channels."""
        return self.unet.config.in_channels == 2 * self.vae.config.latent_channels + 1

    @property
    def sees_masks(self) -> bool:
        return self.is_inpainting_model

    def masked_image_channels(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return masks and latents side by side, (b, 1 + c, h, w), for an inpainting UNet."""
        if not self.is_inpainting_model:
            return None
        return torch.cat(
            [torch.cat([mask.to(latents), latents], dim=1) for mask, latents in pictures]
        )

    @property
    def align_your_steps(self) -> Literal["SD1", "SDXL"]:
        return "SDXL" if self.has_pooled_prompts else "SD1"

    @property
    def prompt_layer(self) -> int:
        """Return the text encoders' layer that is used: -1 is the last, which SDXL never uses."""
        return -self.clip_skip - self.has_pooled_prompts

    @property
    def skips_last_text_layers(self) -> bool:
        return self.prompt_layer < -1

    @property
    def prompt_shape(self) -> tuple[int, int]:
        return int(self.tokenizer.model_max_length), self.unet.config.cross_attention_dim

    def portable_key(self, part: str, key: str) -> str:
        """Return a text encoder's key as before transformers 5.6, which every tool knows."""
        known = key.startswith(("text_model.", "text_projection."))
        return key if known or part not in self.text_encoders else f"text_model.{key}"

    def model_index(self, sampler: str) -> dict[str, Any]:
        import diffusers

        absent = [None, None]
        of_layout: dict[str, Any] = {
            "requires_safety_checker": False,
            "safety_checker": absent,
        }
        if self.has_pooled_prompts:
            of_layout = {
                "add_watermarker": None,
                "force_zeros_for_empty_prompt": self._zeros_for_empty_prompt(),
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer_2": ["transformers", "CLIPTokenizer"],
            }
        if self.is_refiner:
            of_layout["requires_aesthetics_score"] = True
        first = not self.is_refiner
        return {
            **of_layout,
            "_class_name": self.pipeline,
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": absent,
            "image_encoder": absent,
            "scheduler": ["diffusers", sampler],
            "text_encoder": ["transformers", "CLIPTextModel"] if first else absent,
            "tokenizer": ["transformers", "CLIPTokenizer"] if first else absent,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }

    @property
    def pipeline(self) -> str:
        """Return the name of the pipeline in diffusers that draws with the model."""
        kind = "Inpaint" if self.is_inpainting_model else "Img2Img" if self.is_refiner else ""
        return f"StableDiffusion{'XL' if self.has_pooled_prompts else ''}{kind}Pipeline"

    def _zeros_for_empty_prompt(self) -> bool:
        """Return the setting of the base model's own folder; SDXL 1.0's is true."""
        file = Path(resolve_path(self.path)) / "model_index.json"
        index = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return bool(index.get("force_zeros_for_empty_prompt", True))

    def use_eager_attention(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        self.unet.set_attn_processor(AttnProcessor())
        for encoder in self.text_encoders.values():
            encoder.set_attn_implementation("eager")  # type: ignore[operator]

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents of pixels (b, 3, h, w) in -1 … 1.

        Both are fp32, (b, c, h / f, w / f), scaled as the UNet sees them.
        """
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        factor = self.vae.config.scaling_factor
        shift = self.vae.config.shift_factor or 0.0
        return (posterior.mean.float() - shift) * factor, posterior.std.float() * factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents as the UNet sees them to pixels (b, 3, h, w), fp32, clamped to -1 … 1."""
        shift = self.vae.config.shift_factor or 0.0
        latents = latents / self.vae.config.scaling_factor + shift
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Return token ids in chunks of 75 tokens as in A1111, and the positions of embeddings."""
        return tokenize(self.tokenizer, prompts, self.embeddings)

    def embeddings_called(self, prompts: Sequence[str]) -> set[str]:
        return {place.name for place in self.tokenize(prompts).places}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """Return the prompt embeddings, (b, chunks x 77, dim).

        One encoder: layer -clip_skip, normalised. SDXL's two: layer -(clip_skip + 1) of each, not
        normalised, and the pooled embedding of the second (diffusers' StableDiffusionXLPipeline).
        Implemented here since diffusers' `clip_skip` fails with transformers 5.6 and later, and
        never skips on the negative prompt, as A1111 does.
        """
        chunker = PromptChunker(self.tokenizer, self.embeddings)
        encoded = self.encode_chunks([chunker.whole(prompt) for prompt in prompts])
        if not self.has_pooled_prompts:
            return Conditions(encoded[0].states)
        states = torch.cat([one.states for one in encoded], dim=-1)
        return Conditions(states, encoded[-1].pooled)

    def encode_chunks(self, chunks: Sequence[Sequence[Chunk]]) -> list[Encoded]:
        """Encode prompt chunks; return token weights without applying them.

        Prompts with fewer chunks are padded with empty ones. Embeddings (b, chunks x 77, dim),
        normalised if there is one encoder.
        """
        encoded = []
        for number, encoder in enumerate(self.text_encoders.values()):
            # The first tokenizer's ids for both: diffusers' second one takes every "!" for padding.
            filler = int(self.tokenizers[number].pad_token_id)
            tokens = assemble(self.tokenizer, chunks, filler)
            encoded.append(encode(encoder, tokens, self.prompt_layer, self.embeddings, number))
        if self.has_pooled_prompts:
            return encoded
        states = final_layer_norm(self.text_encoder)(encoded[0].states)
        return [replace(encoded[0], states=states)]

    def encode_drawing(
        self, prompts: Sequence[str], negatives: Sequence[str], settings: PromptSettings
    ) -> DrawingConditions:
        return encode_drawing_prompts(self, prompts, negatives, settings)

    def with_scores(self, sizes: Tensor, scores: Tensor | None) -> Tensor:
        """Return a refiner's conditioning (b, 5) of sizes (b, 6) and scores (b,); others' as is."""
        if self.aesthetic_scores is None:
            return sizes
        if scores is None:
            scores = sizes.new_full((len(sizes),), self.aesthetic_scores[0])
        return torch.cat([sizes[:, :4].to(scores), scores[:, None]], dim=1)

    def predict(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """Return the UNet's prediction (noise or velocity) at the timesteps (b,), in its own dtype.

        Args:
            noisy_latents: (b, c, h, w).
            timesteps: (b,).
            conditions: of b prompts.
            sizes: SDXL's size conditioning in pixels, (b, 6), see `whole_picture`; by default
                that of uncropped images of the latents' size. For a refiner (b, 5), with an
                aesthetic score instead of the last two. Other models ignore it.
        """
        extra: dict[str, Any] = {}
        if conditions.pooled is not None:
            if sizes is None:
                height, width = (side * self.vae_scale_factor for side in noisy_latents.shape[2:])
                sizes = whole_picture(height, width).expand(len(noisy_latents), -1)
                sizes = self.with_scores(sizes, conditions.scores)
            sizes = sizes.to(noisy_latents.device, torch.float32)
            extra = {"added_cond_kwargs": {"text_embeds": conditions.pooled, "time_ids": sizes}}
        return self.unet(
            noisy_latents, timesteps, encoder_hidden_states=conditions.states, **extra
        ).sample


def unet_blocks(unet: Any) -> list[nn.Module]:
    """Return a UNet's residual and transformer blocks in the order of computation.

    Without the first one in the middle, which diffusers does not recompute.
    """
    found: list[nn.Module] = []
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        attentions = list(getattr(level, "attentions", None) or ())
        for number, residual in enumerate(level.resnets):
            if level is not unet.mid_block or number > 0:
                found.append(residual)
            if number < len(attentions):
                found += attentions[number].transformer_blocks
    return found
