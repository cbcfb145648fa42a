"""The rotary positions of a clip's tokens, the same in training and inference.

Equal to `_prepare_rotary_positional_embeddings` of diffusers 0.42.1's CogVideoX pipelines. SAT and
the official trainer cut the table of CogVideoX 1.0 instead of stretching it (`kind="slice"`): the
same at the trained size, and positions up to 2.0 apart in cos at others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SpelledOut(TorchFunctionMode):
    """Within it `scaled_dot_product_attention` is two products and a softmax.

    On CPUs the backward pass of torch's fused one takes more time than all else in a small
    transformer (measured with torch 2.13: 1.5 s of a step become 0.8 s in bf16).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            # diffusers' dispatch_attention_fn passes these defaults
            assert given.pop("scale", None) is None and not given.pop("enable_gqa", False)
            return spelled_out(*args, **given)
        return func(*args, **given)


def spelled_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Compute `scaled_dot_product_attention` with the arguments that CogVideoX uses."""
    assert not is_causal and not dropout_p
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value


class EagerProcessor:
    """A transformer's attention processor with explicit attention."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        with SpelledOut():
            return self.processor(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )


def use_eager(transformer: Any) -> None:
    """Use explicit attention in every block."""
    processors = transformer.attn_processors
    transformer.set_attn_processor(
        {name: EagerProcessor(processor) for name, processor in processors.items()}
    )


Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (tokens, attention_head_dim), fp32; frame by frame, row by row."""
Kind = Literal["pipeline", "slice"]


class _Grid(NamedTuple):
    height: int
    width: int


def rotary_positions(
    transformer_config: Any,
    latent_height: int,
    latent_width: int,
    latent_frames: int,
    device: torch.device | str = "cpu",
    kind: Kind = "pipeline",
) -> Rotary | None:
    """Return the transformer's `image_rotary_emb`; None for models without positions (2B).

    The tensors are cached and shared: never write into them. CogVideoX 1.5 counts integer positions
    from the corner; if a clip is larger than the config's size, it just counts on, which the
    pipelines do not (published configs differ, and portraits fail there).

    Args:
        transformer_config: config of a `CogVideoXTransformer3DModel`.
        latent_height: rows of latents.
        latent_width: columns of latents.
        latent_frames: latent frames, padding included.
        device: the device of the result.
        kind: `pipeline`; `slice` counts from the corner for CogVideoX 1.0 as well.
    """
    if not transformer_config.use_rotary_positional_embeddings:
        return None
    patch, patch_t = transformer_config.patch_size, transformer_config.patch_size_t
    return _rotary(
        transformer_config.attention_head_dim,
        _Grid(latent_height // patch, latent_width // patch),
        _Grid(transformer_config.sample_height // patch, transformer_config.sample_width // patch),
        -(-latent_frames // (patch_t or 1)),
        kind == "slice" or patch_t is not None,
        torch.device(device),
    )


@lru_cache(maxsize=8)
def _rotary(
    head_dim: int, grid: _Grid, base: _Grid, frames: int, is_cut: bool, device: torch.device
) -> Rotary:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    if is_cut:
        table = (max(grid.height, base.height), max(grid.width, base.width))
        shape: dict[str, Any] = {"crops_coords": None, "grid_type": "slice", "max_size": table}
    else:
        shape = {"crops_coords": stretched_region(grid, base)}
    with torch.inference_mode(False), torch.no_grad():  # cached tensors must work in training, too
        cosines, sines = get_3d_rotary_pos_embed(
            embed_dim=head_dim, grid_size=tuple(grid), temporal_size=frames, device=device, **shape
        )
    return cosines, sines


def stretched_region(
    grid: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (top, left), (bottom, right) of a clip in the trained grid: centred, as large as fits.

    `grid` and `base` are (height, width) in patches. Halves are rounded to even, as the pipelines'
    `get_resize_crop_region_for_grid` does.
    """
    (height, width), (base_height, base_width) = grid, base
    if height / width > base_height / base_width:
        tall, wide = base_height, round(base_height / height * width)
    else:
        tall, wide = round(base_width / width * height), base_width
    top, left = round((base_height - tall) / 2), round((base_width - wide) / 2)
    return (top, left), (top + tall, left + wide)


def drop_learned_positions(transformer: Any) -> bool:
    """Remove CogVideoX-5B-I2V's learned positions, so that it accepts any size and length.

    Its authors say that the table is next to zero (a-r-r-o-w/finetrainers issue 26). What is
    trained without it must be used without it. The transformer's config and weights are then those
    of a model without positions, also when they are saved.

    Returns:
        Whether there were any.
    """
    if not transformer.config.use_learned_positional_embeddings:
        return False
    del transformer.patch_embed.pos_embedding
    transformer.patch_embed.use_learned_positional_embeddings = False
    transformer.register_to_config(use_learned_positional_embeddings=False)
    return True
