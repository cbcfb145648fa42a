"""The memory that a video model needs while a clip is generated, measured from shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inference.clips.requests import padded_frames, window_frames
from inference.config import ClipConfig
from inference.memory import (
    MemoryNeeds,
    decoding_measured,
    denoising_measured,
    on_meta,
    swapped_bytes,
    tiled,
    weight_bytes,
)
from inference.models import ClipModel
from inference.sampling import SAMPLERS


def needs_of(
    base: ClipModel, requests: Sequence[ClipConfig], blocks_to_swap: float = 0
) -> MemoryNeeds:
    """Measure the needs of a model and the largest of its clips, without computing a value."""
    text_encoders = sum(map(weight_bytes, base.text_encoders.values()))
    denoiser = weight_bytes(base.denoiser) - swapped_bytes(base.blocks(), blocks_to_swap)
    weights = denoiser, text_encoders, weight_bytes(base.vae)
    with on_meta(*base.parts.values()):
        sizes = {sizes_of(base, request) for request in requests}
        drawing = max(denoising_measured(base, *one.seen).bytes for one in sizes)
        decoding = max(decoding_bytes(base, one.latents) for one in sizes)
        tiled_decoding = max(decoding_bytes(base, one.latents, is_tiled=True) for one in sizes)
    return MemoryNeeds(*weights, drawing, decoding, tiled_decoding)


def whole_decoding(base: ClipModel, requests: Sequence[ClipConfig]) -> int:
    """Return the bytes of decoding the largest of some clips whole."""
    with on_meta(base.vae):
        return max(decoding_bytes(base, sizes_of(base, one).latents) for one in requests)


class Sizes(NamedTuple):
    """The shapes of a clip's latents."""

    latents: tuple[int, ...]
    """Of the whole clip, as they are decoded."""
    seen: tuple[tuple[int, ...], int, bool]
    """Of those that the denoiser sees at once; its prompts; whether other latents condition it."""


def sizes_of(base: ClipModel, request: ClipConfig) -> Sizes:
    """Return the shapes of a request's latents."""
    assert request.frames and request.width and request.height
    factor, channels = base.vae_scale_factor, base.vae.config.latent_channels
    sides = channels, request.height // factor, request.width // factor
    frames, extra = padded_frames(base, request.frames)
    window = window_frames(base, request)
    seen = min(window[0], frames) if window else frames
    has_condition = request.image is not None or request.control_video is not None
    is_alone = request.is_unguided and not SAMPLERS[str(request.sampler)].needs_uncond
    prompts = 1 if is_alone else 2
    return Sizes((1, frames - extra, *sides), ((1, seen, *sides), prompts, has_condition))


def decoding_bytes(base: ClipModel, latents: Sequence[int], is_tiled: bool = False) -> int:
    """Return the bytes of decoding latents on the meta device, whole or in tiles."""
    with tiled(base.vae, is_tiled):
        return decoding_measured(base, latents).bytes
