"""The numbers of frames and the sizes that a CogVideoX model accepts, and the nearest ones.

Taken from diffusers 0.42.1: `AutoencoderKLCogVideoX._encode` and `._decode` (chunks of frames),
`CogVideoXDownsample3D` and `CogVideoXUpsample3D` (lengths of chunks), `CogVideoXPatchEmbed`
(patches, positions) and the pipelines (padding).
"""

from dataclasses import dataclass
from typing import Any, Self

from inference.models.size_rules import FrameArithmetic
from inference.runtime import InputError


@dataclass(frozen=True)
class FrameRule(FrameArithmetic):
    """The arithmetic of a video VAE: frames, latent frames, and which clips keep their length.

    The VAE processes chunks; the remainder joins the first one. Halving a chunk keeps the first
    frame of an odd number separate, doubling does not double it. So 8k frames give an even number
    of latent frames and 8k + 1 an odd one, while of 5 or 13 frames 8 or 16 come back.
    """

    temporal_ratio: int = 4
    """Frames per latent frame: a power of 2 that divides `frame_chunk`."""
    frame_chunk: int = 8
    """Frames that are encoded at a time."""
    latent_chunk: int = 2
    """Latent frames that are decoded at a time."""

    def __post_init__(self) -> None:
        is_power = self.temporal_ratio & (self.temporal_ratio - 1) == 0
        if not is_power or self.frame_chunk % self.temporal_ratio or self.latent_chunk % 2:
            raise ValueError(f"no clip but a single frame would come back as it went in: {self}")

    @classmethod
    def of(cls, vae: Any) -> Self:
        """Return the rule of an `AutoencoderKLCogVideoX`."""
        return cls(
            int(vae.config.temporal_compression_ratio),
            vae.num_sample_frames_batch_size,
            vae.num_latent_frames_batch_size,
        )

    def latent_frames(self, frames: int) -> int:
        """Return the latent frames of a clip: (frames - 1) // 4 + 1 at a ratio of 4."""
        first, others = _chunks(frames, self.frame_chunk)
        return -(-first // self.temporal_ratio) + others * (self.frame_chunk // self.temporal_ratio)

    def decoded_frames(self, latent_frames: int) -> int:
        """Return the frames that are decoded from a number of latent frames."""
        first, others = _chunks(latent_frames, self.latent_chunk)
        of_first = self.temporal_ratio * (first - first % 2) + first % 2
        return of_first + others * self.temporal_ratio * self.latent_chunk

    def words(self, latent_multiple: int = 1) -> str:
        """State in one clause which numbers of frames fit."""
        step = self.temporal_ratio * self.latent_chunk
        if latent_multiple == 1:
            return f"the VAE gives back 1, {step}k or {step}k + 1 frames as they went in"
        return (
            f"a clip that this model draws over needs a multiple of {latent_multiple} latent "
            f"frames, so {self.nearest(1, latent_multiple)[1]}k frames"
        )


def _chunks(length: int, size: int) -> tuple[int, int]:
    """Return the length of the first chunk, with the remainder, and the number of full ones."""
    others = max(length // size, 1) - 1
    return length - size * others, others


def padding(latent_frames: int, patch_size_t: int | None) -> int:
    """Return the additional latent frames of CogVideoX 1.5 for whole patches of `patch_size_t`.

    They are in front: copies of the first latent frame in training (CogVideo
    `finetune/models/cogvideox_t2v/lora_trainer.py`), noise in generating, where the pipelines drop
    them again before they decode.
    """
    return -latent_frames % patch_size_t if patch_size_t else 0


def video_to_video_multiple(patch_size_t: int | None) -> int:
    """Return the number that the latent frames of video-to-video must be a multiple of.

    `CogVideoXVideoToVideoPipeline` does not pad: 81 frames fail on CogVideoX 1.5, 80 do not.
    """
    return patch_size_t or 1


def video_tokens(
    latent_frames: int, latent_height: int, latent_width: int, transformer_config: Any
) -> int:
    """Return the tokens of a clip in the transformer's sequence, without those of its prompt."""
    patch, patch_t = transformer_config.patch_size, transformer_config.patch_size_t
    frames = latent_frames + padding(latent_frames, patch_t)
    return frames // (patch_t or 1) * (latent_height // patch) * (latent_width // patch)


def size_step(vae_scale_factor: int, patch_size: int) -> int:
    """Return the divisor of widths and heights in pixels: 16 for the published models.

    The pipelines check for 8 only; 24 fails in them with a shape error.
    """
    return vae_scale_factor * patch_size


def check_positions(
    transformer_config: Any, width: int, height: int, latent_frames: int, vae_scale_factor: int
) -> str | None:
    """Return a note if the transformer was not trained at a clip's size or length.

    CogVideoX-5B-I2V has learned positions for one size and length: another size fails in diffusers,
    and
    at another length it silently adds computed positions instead. CogVideoX-2B's sine
    positions are computed for any size, but trained at one. Rotary positions fit all sizes.

    Args:
        transformer_config: config of a `CogVideoXTransformer3DModel`.
        width: of the clip, in pixels.
        height: of the clip, in pixels.
        latent_frames: of the clip, without padding.
        vae_scale_factor: pixels per latent along each side.

    Raises:
        InputError: learned positions, and another size or length than theirs.
    """
    trained_width = transformer_config.sample_width * vae_scale_factor
    trained_height = transformer_config.sample_height * vae_scale_factor
    ratio = transformer_config.temporal_compression_ratio
    trained_frames = (transformer_config.sample_frames - 1) // ratio + 1
    is_trained_size = (width, height) == (trained_width, trained_height)
    if transformer_config.use_learned_positional_embeddings:
        if is_trained_size and latent_frames == trained_frames:
            return None
        raise InputError(
            f"width, height, frames: {width}x{height} with {latent_frames} latent frames; this "
            f"model has learned positions for {trained_width}x{trained_height} with "
            f"{trained_frames} ({transformer_config.sample_frames} frames) only; use these, or "
            "drop_learned_positions: true in training and drawing"
        )
    if transformer_config.use_rotary_positional_embeddings or is_trained_size:
        return None
    return (
        f"{width}x{height}: this model's positions were trained at "
        f"{trained_width}x{trained_height} only; expect worse clips at other sizes"
    )
