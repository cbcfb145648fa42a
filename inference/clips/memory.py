"""Placement of a video model's parts while a clip is generated, chosen by free memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from inference.clips.requests import padded_frames, window_frames
from inference.config import ClipConfig, Offload
from inference.memory import decoding_measured, denoising_measured, on_meta
from inference.models import ClipModel
from inference.sampling import SAMPLERS

GIB = 1024**3
RESERVE = GIB // 2
"""Bytes left free for memory that is not counted."""


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes."""

    transformer: int
    text_encoder: int
    vae: int
    drawing: int
    """The transformer's evaluation, without its weights."""
    decoding: int
    """The VAE without its weights, the whole image at once."""
    tiled_decoding: int
    """The same in tiles."""


@dataclass(frozen=True)
class MemoryPlan:
    """A value of `memory`, and whether the VAE uses tiles."""

    offload: Offload = "none"
    is_tiled: bool = False
    reason: str = ""
    """For the user; empty if there was no choice."""


def choose_memory(needs: MemoryNeeds | None, free: int | None, wish: str = "auto") -> MemoryPlan:
    """Return the fastest mode that fits into free memory; the most economical one if none does.

    Args:
        needs: of the model and the largest clip; None if there is no choice.
        free: free bytes of the GPU before the model is loaded; None on a CPU, where there
            is no choice.
        wish: `auto`, or a fixed mode; then only tiles are chosen.
    """
    if free is None or needs is None:
        return MemoryPlan()
    for offload in ("none", "model_offload"):
        for is_tiled in (False, True):
            peak = peak_of(needs, offload, is_tiled) + RESERVE
            if wish in ("auto", offload) and peak <= free:
                text = f"about {peak / GIB:.1f} of {free / GIB:.1f} GiB"
                tiles = ", the VAE in tiles" if is_tiled else ""
                return MemoryPlan(offload, is_tiled, f"{offload}{tiles} ({text})")
    offload: Any = "sequential_offload" if wish == "auto" else wish
    text = f"{offload}, the VAE in tiles; {free / GIB:.1f} GiB are free"
    if offload == "sequential_offload":
        text += "; several times slower than with all weights on the GPU"
    return MemoryPlan(offload, True, text)


def peak_of(needs: MemoryNeeds, offload: str, is_tiled: bool) -> int:
    """Return the bytes that a mode uses at most."""
    decoding = needs.tiled_decoding if is_tiled else needs.decoding
    if offload == "none":
        weights = needs.transformer + needs.text_encoder + needs.vae
        return weights + max(needs.drawing, decoding)
    return max(needs.text_encoder, needs.transformer + needs.drawing, needs.vae + decoding)


def needs_of(base: ClipModel, requests: Sequence[ClipConfig]) -> MemoryNeeds:
    """Measure the needs of a model and the largest of its clips, without computing a value."""
    text_encoders = sum(map(weight_bytes, base.text_encoders.values()))
    weights = weight_bytes(base.denoiser), text_encoders, weight_bytes(base.vae)
    with on_meta(*base.parts.values()):
        sizes = {sizes_of(base, request) for request in requests}
        drawing = max(denoising_measured(base, *one.seen).bytes for one in sizes)
        decoding = max(decoding_bytes(base, one.latents) for one in sizes)
        tiled_decoding = max(decoding_bytes(base, one.latents, is_tiled=True) for one in sizes)
    return MemoryNeeds(*weights, drawing, decoding, tiled_decoding)


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


def weight_bytes(part: nn.Module) -> int:
    """Return the bytes of a part's weights."""
    return sum(p.numel() * p.element_size() for p in part.parameters())


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU; None for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


@dataclass
class Placement:
    """Where the parts work. By default: where they are."""

    device: torch.device | None = None
    offload: Offload = "none"
    is_tiled: bool = False

    def settle(self, base: ClipModel) -> None:
        """Move a model that was loaded on the CPU to its waiting device."""
        if self.device is not None and self.offload == "none":
            base.to(self.device)

    @contextmanager
    def at_work(self, base: ClipModel, name: str) -> Iterator[None]:
        """Move a part to the device inside the context, and back afterwards.

        With sequential_offload the text encoder runs on the CPU, because it runs only once,
        and only the transformer's current layer is on the device (accelerate's `cpu_offload`).
        """
        part = base.parts[name]
        with tiled(base.vae, self.is_tiled and name == "vae"):
            if self.offload == "none" or self.device is None:
                yield
            elif self.offload == "model_offload" or name == "vae":
                home = next(part.parameters()).device
                part.to(self.device)
                try:
                    yield
                finally:
                    part.to(home)
            elif name in base.text_encoders:
                yield
            else:
                with layer_by_layer(part, self.device):
                    yield


@contextmanager
def layer_by_layer(part: nn.Module, device: torch.device) -> Iterator[None]:
    """Move each layer of a part to the device only while it works."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    cpu_offload(part, device, offload_buffers=True)
    try:
        yield
    finally:
        remove_hook_from_module(part, recurse=True)


@contextmanager
def tiled(vae: Any, is_wanted: bool) -> Iterator[None]:
    """Enable the VAE's tiles, if wanted; its switches afterwards are as before."""
    if not is_wanted or vae.use_tiling:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
