"""The memory that a latent diffusion model takes in each phase of its work, besides weights.

The model's weights are on the meta device (`on_meta`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from inference.memory.measuring import live_bytes


class Model(Protocol):
    """What is measured of `inference.models.DiffusionModel`."""

    dtype: torch.dtype

    @property
    def parts(self) -> Mapping[str, nn.Module]: ...

    @property
    def prompt_shape(self) -> tuple[int, int]: ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...

    def decode_latents(self, latents: Tensor) -> Tensor: ...

    def encode_prompts(self, prompts: Sequence[str]) -> Any: ...

    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, conditions: Any, extra: Any = None, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class Measured:
    """Bytes at the peak, and what was made."""

    bytes: int
    result: Any


encoded: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Measured]] = WeakKeyDictionary()
"""What each VAE has encoded, because several phases ask for the shape of the latents."""


class Wordless:
    """Stands in for the tokenizer that a model without weights may lack."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, prompts: Sequence[str], **options: object) -> Wordless:
        self.input_ids = torch.zeros(len(prompts), self.length, dtype=torch.long)
        return self


@contextmanager
def with_tokenizer(base: Any) -> Iterator[None]:
    """Give a model that was made without its tokenizer another one inside the context."""
    if getattr(base, "tokenizer", "has none") is not None:
        yield
        return
    base.tokenizer = Wordless(base.prompt_shape[0])
    try:
        yield
    finally:
        base.tokenizer = None


@torch.no_grad()
def prompts_measured(base: Model, rows: int) -> Measured:
    """Encode so many prompts of usual length; the result is their conditions."""
    with with_tokenizer(base), live_bytes() as (live, _):
        result = base.encode_prompts(["a"] * rows)
    return Measured(live.peak, result)


@torch.no_grad()
def encoding_measured(base: Model, rows: int, shape: Sequence[int]) -> Measured:
    """Encode images or clips of a shape in pixels; the result is the mean of their latents."""
    vae: Any = base.parts["vae"]
    known = encoded.setdefault(vae, {})
    sharers = getattr(vae, "sharers", None)
    key = rows, *shape, vae.dtype, getattr(vae, "use_tiling", False), sharers
    if key not in known:
        with live_bytes() as (live, _):
            pixels = torch.zeros(rows, 3, *shape, device="meta", dtype=vae.dtype)
            result = base.encode_images(pixels)[0]
        known[key] = Measured(live.peak, result)
    return known[key]


@torch.no_grad()
def decoding_measured(base: Model, latents: Sequence[int]) -> Measured:
    """Decode latents of a shape, with rows; the result is their pixels."""
    with live_bytes() as (live, _):
        result = base.decode_latents(torch.zeros(*latents, device="meta"))
    return Measured(live.peak, result)


@torch.no_grad()
def denoising_measured(
    base: Model, latents: Sequence[int], prompts: int, has_extra: bool = False
) -> Measured:
    """Evaluate the denoiser in a step of a sampler; the result is the prediction.

    Args:
        base: the model, in the dtype of generating.
        latents: shape of the latents, with rows.
        prompts: for each row: 2 with guidance, else 1.
        has_extra: whether other latents of this shape condition the model.
    """
    rows = latents[0] * prompts
    conditions = prompts_measured(base, rows).result
    held = sum(one.nbytes for one in (conditions.states, conditions.pooled) if one is not None)
    with live_bytes() as (live, _):
        x = torch.zeros(*latents, device="meta")
        conditions = conditions.to(base.dtype)
        seen = torch.cat([x] * prompts).to(base.dtype)
        extra = torch.cat([x.to(base.dtype)] * prompts) if has_extra else None
        if getattr(base, "sees_masks", False):  # then mask and masked latents are beside them
            seen = torch.cat([seen, seen[:, :1], seen], dim=1)
        timesteps = torch.zeros(rows, dtype=torch.long, device="meta")
        result = base.predict(seen, timesteps, conditions, extra).float()
    return Measured(held + live.peak, result)
