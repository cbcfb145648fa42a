"""A base model in the CogVideoX layout (Yang et al. 2024, arXiv 2408.06072)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from inference.memory import Packable
from inference.models.clip_model import ClipModel, LatentScale
from inference.models.cogvideox.arithmetic import (
    FrameRule,
    check_positions,
    padding,
    video_to_video_multiple,
    video_tokens,
)
from inference.models.cogvideox.detect import family_of
from inference.models.cogvideox.image_condition import image_latents, offset, place
from inference.models.conditions import Conditions
from inference.models.names import resolve_path
from inference.models.parametrization import DiscreteVP, discrete_vp
from inference.models.size_rules import SizeRules
from inference.parallel import check_heads, parallel_config, share
from inference.runtime import InputError, to_device

if TYPE_CHECKING:
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

    from inference.models.cogvideox.shared_frames import SharedFrames
    from inference.parallel import Layout, Ring

BOUNDLESS = 300
"""Latent side lengths in CogVideoX 1.5's first configs: an upper bound, not a default size."""


@dataclass
class VideoModel(ClipModel):
    """The parts of a CogVideoX model, 1.0 or 1.5, for text-to-video or image-to-video.

    Clips are (b, 3, f, h, w) in -1 … 1, latents (b, f', c, h', w') as the transformer sees them.
    """

    family_name: ClassVar[str] = "cogvideox"
    denoiser_name: ClassVar[str] = "transformer"
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    tensor_format: ClassVar[str] = "BFCHW"
    packable: ClassVar[Packable] = Packable(linear=(".attn1.", ".ff."))

    path: str
    tokenizer: PreTrainedTokenizerBase
    text_encoder: T5EncoderModel
    vae: Any
    """AutoencoderKLCogVideoX, untyped because its types are inferred badly."""
    transformer: CogVideoXTransformer3DModel
    alphas_cumprod: Tensor
    """Signal's share of the variance at each timestep, (num_timesteps,), fp32 on the CPU."""
    prediction_type: str
    noise_schedule: dict[str, object]
    dtype: torch.dtype
    sharing: SharedFrames | None = field(default=None, init=False, repr=False)
    """How clips are encoded and decoded together with other processes."""

    @property
    def denoiser(self) -> CogVideoXTransformer3DModel:
        return self.transformer

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    @property
    def parametrization(self) -> DiscreteVP:
        return discrete_vp(self.alphas_cumprod, self.prediction_type)

    @property
    def tokenizers(self) -> list[Any]:
        return [self.tokenizer]

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.text_encoder}

    @property
    def size_step(self) -> int:
        """Return the VAE's factor times the transformer's patch size."""
        return self.vae_scale_factor * self.config.patch_size

    @property
    def sizes(self) -> SizeRules:
        config, factor = self.config, self.vae_scale_factor
        return SizeRules(
            self.size_step,
            config.sample_width * factor,
            config.sample_height * factor,
            FrameRule.of(self.vae),
            self.is_image_to_video,
            check=lambda width, height, frames: check_positions(
                config, width, height, frames, factor
            ),
        )

    @property
    def frame_ratio(self) -> int:
        """Return the frames per latent frame."""
        return int(self.vae.config.temporal_compression_ratio)

    @property
    def config(self) -> Any:
        """Return the transformer's config."""
        return self.transformer.config

    @property
    def is_image_to_video(self) -> bool:
        """Return whether the transformer is also conditioned on the latents of a first frame."""
        return self.config.in_channels == 2 * self.vae.config.latent_channels

    @property
    def latent_frame_step(self) -> int:
        """Return the divisor of the number of latent frames: 2 in CogVideoX 1.5, else 1."""
        return self.config.patch_size_t or 1

    @property
    def frame_counts(self) -> FrameRule:
        return FrameRule.of(self.vae)

    @property
    def redrawn_frame_step(self) -> int:
        return video_to_video_multiple(self.config.patch_size_t)

    def padding(self, latent_frames: int) -> int:
        return padding(latent_frames, self.config.patch_size_t)

    @property
    def fps(self) -> float:
        """Return 16 for CogVideoX 1.5, 8 for all others."""
        return 16.0 if self.config.patch_size_t else 8.0

    @property
    def own_frames(self) -> int:
        return int(self.config.sample_frames)

    @property
    def own_size(self) -> tuple[int, int] | None:
        sides = self.config.sample_width, self.config.sample_height
        if sides == (BOUNDLESS, BOUNDLESS):
            return None
        return sides[0] * self.vae_scale_factor, sides[1] * self.vae_scale_factor

    def check_sources(self, given: Collection[str]) -> None:
        conditions = [name for name in ("image", "control_video") if name in given]
        if self.is_image_to_video and not conditions:
            raise InputError(
                f"image: {self.path} draws from a picture (image-to-video) or follows a clip "
                "(Fun-Control); give image or control_video"
            )
        if not self.is_image_to_video and conditions:
            kind = "an image-to-video" if conditions[0] == "image" else "a Fun-Control"
            raise InputError(
                f"{conditions[0]}: {self.path} draws from text alone; take {kind} model"
            )
        if self.is_image_to_video and "video" in given:
            raise InputError(f"video: needs a text-to-video model, which {self.path} is not")

    def check_positions(self, width: int, height: int, latent_frames: int) -> str | None:
        return check_positions(self.config, width, height, latent_frames, self.vae_scale_factor)

    def check_context(self, processes: int) -> None:
        known = family_of(self.config)
        name = known.title if known else self.path
        check_heads(self.config.num_attention_heads, processes, name)

    def divide(self, layout: Layout) -> None:
        from inference.models.cogvideox.context import DividedTransformer

        self.check_context(layout.context)
        config = parallel_config(layout, self.device)
        self.division = DividedTransformer(self.transformer, config, layout.context)

    def drop_learned_positions(self) -> bool:
        from inference.models.cogvideox.transformer import drop_learned_positions

        return drop_learned_positions(self.transformer)

    def sequence_tokens(
        self, latent_frames: int, latent_height: int, latent_width: int, processes: int = 1
    ) -> int:
        tokens = video_tokens(latent_frames, latent_height, latent_width, self.config)
        prompt = self.config.max_text_seq_length
        return share(tokens, processes) + share(prompt, processes)

    @property
    def denoiser_width(self) -> int:
        return self.config.num_attention_heads * self.config.attention_head_dim

    @property
    def skips_last_text_layers(self) -> bool:
        return False

    @property
    def prompt_shape(self) -> tuple[int, int]:
        return self.config.max_text_seq_length, self.config.text_embed_dim

    @contextmanager
    def frames_shared(self, ring: Ring | None) -> Iterator[None]:
        """Encode and decode clips together with the processes of a ring inside the context.

        There all of them encode and decode the same clips in the same order. Encoding gives the
        latents of the whole clip, `decode_latents` the frames of this process alone.
        """
        if ring is None or self.sharing is not None:
            yield
            return
        from inference.models.cogvideox.shared_frames import SharedFrames

        self.sharing = SharedFrames(self.vae, ring, self.device)
        try:
            with self.sharing.at_work():
                yield
        finally:
            self.sharing = None

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents of clips (b, 3, f, h, w) in -1 … 1.

        Both are fp32, (b, f', c, h', w'), scaled as the transformer sees them.
        """
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        factor = self.vae.config.scaling_factor
        mean, std = posterior.mean.float() * factor, posterior.std.float() * factor
        return mean.transpose(1, 2).contiguous(), std.transpose(1, 2).contiguous()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents (b, f', c, h', w') to clips (b, 3, f, h, w), fp32, clamped to -1 … 1."""
        latents = 1 / self.vae.config.scaling_factor * latents.transpose(1, 2)
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def decode_frames(self, latents: Tensor, finish: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        if self.sharing is None:
            return super().decode_frames(latents, finish)
        return self.sharing.to_first(lambda: finish(self.decode_latents(latents)), latents.shape[1])

    def sample_latents(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        latents = self._posterior_sample(pixels, generator)
        return self.vae.config.scaling_factor * latents

    def _posterior_sample(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.sample(generator).to(self.dtype).transpose(1, 2)

    def frame_condition(
        self,
        first: Tensor,
        last: Tensor | None,
        latent_frames: int,
        generator: torch.Generator,
        scale: LatentScale,
    ) -> Tensor:
        """Return latents with the first frame on latent frame 0, and zeros elsewhere.

        Those of a last frame are on the last latent frame, as in CogVideoX-Interpolation.
        """

        def encoded(pixels: Tensor) -> Tensor:
            latents, config = self._posterior_sample(pixels, generator), self.vae.config
            return image_latents(latents, config.scaling_factor, config.invert_scale_latents, scale)

        condition = place(encoded(first), latent_frames)
        if last is not None and latent_frames > 1:
            condition[:, -1:] = encoded(last)
        return condition

    def clip_condition(self, pixels: Tensor) -> Tensor:
        control = self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor
        return control.transpose(1, 2)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """Return T5's prompt embeddings, (b, tokens, dim): padded, without a mask, truncated.

        As CogVideoXPipeline does (diffusers `pipelines/cogvideo/pipeline_cogvideox.py`).
        """
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.config.max_text_seq_length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        ids = to_device(tokens.input_ids, self.text_encoder.device)
        return Conditions(self.text_encoder(ids)[0].to(self.device, self.dtype))

    def truncation_of(self, prompts: Sequence[str]) -> str | None:
        """Return a warning about prompts with more tokens than T5 reads, which truncates them.

        None for a model without a tokenizer, as in a plan.
        """
        if not prompts or self.tokenizer is None:
            return None
        room = self.config.max_text_seq_length
        lengths = [len(ids) for ids in self.tokenizer(list(prompts), verbose=False).input_ids]
        long = [number for number, length in enumerate(lengths) if length > room]
        if not long:
            return None
        first = long[0]
        return (
            f"{len(long)} of {len(prompts)} prompts have more than the {room} tokens that the text "
            f"encoder reads; their ends are left out. The first ({lengths[first]} tokens): "
            f"{prompts[first][:60]!r} …"
        )

    def predict(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        image_latents: Tensor | None = None,
    ) -> Tensor:
        """Return the transformer's v-prediction at the timesteps (b,), in its own dtype.

        Args:
            noisy_latents: (b, f', c, h', w').
            timesteps: (b,), 0 … 999.
            conditions: of b prompts.
            image_latents: an image-to-video model's conditioning, of the latents' shape.
        """
        if image_latents is not None:
            noisy_latents = torch.cat([noisy_latents, image_latents.to(noisy_latents)], dim=2)
        return self.transformer(
            hidden_states=noisy_latents.to(self.dtype),
            encoder_hidden_states=conditions.states.to(self.dtype),
            timestep=timesteps,
            ofs=offset(self.config, noisy_latents),
            image_rotary_emb=self.positions(noisy_latents),
        ).sample

    def positions(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the rotary positions of latents (b, f', c, h', w'); None for the 2B model."""
        from inference.models.cogvideox.transformer import rotary_positions

        frames, _, height, width = latents.shape[1:]
        return rotary_positions(self.config, height, width, frames, latents.device)

    def model_index(self, sampler: str) -> dict[str, Any]:
        """Return the source's own model_index.json, or that of CogVideoX."""
        import diffusers

        file = Path(resolve_path(self.path)) / "model_index.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        kind = "CogVideoXImageToVideoPipeline" if self.is_image_to_video else "CogVideoXPipeline"
        return {
            "_class_name": kind,
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", self.noise_schedule["_class_name"]],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", type(self.tokenizer).__name__],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        }

    def use_eager_attention(self) -> None:
        from inference.models.cogvideox.transformer import use_eager

        use_eager(self.transformer)
        self.text_encoder.set_attn_implementation("eager")
