"""Packed weights of a video transformer (bitsandbytes): NF4 and INT8, for LoRAs and for drawing.

QLoRA: Dettmers et al. 2023 (arXiv 2305.14314); LLM.int8(): Dettmers et al. 2022 (arXiv 2208.07339).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inference.base_model import BaseModelError

if TYPE_CHECKING:
    from inference.video.model import VideoModel

PACKED_PARTS = (".attn1.", ".ff.")
"""Attention and feed-forward of the blocks, 83 % of CogVideoX-5B. What the timestep changes (norms,
AdaLN), embeddings and the last layer stay as they are: they are few and suffer most."""
BITS = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "int8": 8.0}
"""Of a weight. NF4: 4, and for each 64 of them a scale, itself in 8 bits (double quantization), and
for 256 of those one in 32. INT8's scale for each output is left out."""


def quantize(model: VideoModel, kind: str, dtype: torch.dtype) -> None:
    """Packs the weights of the transformer's large layers, on the CPU.

    They are first rounded to the number format that the layers compute in, so that training and
    drawing see the same numbers, whatever they were read in.

    Args:
        model: with plain weights on the CPU.
        kind: `nf4` or `int8`.
        dtype: number format that the layers compute in.

    Raises:
        BaseModelError: bitsandbytes cannot be imported.
    """
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise BaseModelError(
            f"base_model.quantization: {kind} needs bitsandbytes, which cannot be imported: {error}"
        ) from error
    for path, layer in list(packable_layers(model.transformer)):
        packed = _packed(bnb, layer, kind, dtype)
        parent, _, name = path.rpartition(".")
        setattr(model.transformer.get_submodule(parent), name, packed)


def packable_layers(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Path and layer of all that `quantize` packs; under a LoRA the layer itself."""
    for path, layer in transformer.named_modules():
        is_inside = any(part in f".{path}" for part in PACKED_PARTS) and ".lora_" not in path
        if is_inside and isinstance(layer, nn.Linear):
            yield path, layer


def _packed(bnb: Any, layer: nn.Linear, kind: str, dtype: torch.dtype) -> nn.Linear:
    sizes = layer.in_features, layer.out_features, layer.bias is not None
    weight = layer.weight.detach().to(dtype)
    if kind == "nf4":
        packed = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", device="meta")
        packed.weight = bnb.nn.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type="nf4", module=packed
        )
    else:
        packed = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0, device="meta")
        packed.weight = bnb.nn.Int8Params(
            weight.contiguous(), requires_grad=False, has_fp16_weights=False
        )
        packed.compute_dtype = dtype
    if layer.bias is not None:
        packed.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return packed.to("cpu").requires_grad_(False).eval()


def is_packed(weight: Tensor) -> bool:
    """Whether a layer's weight is packed, and its shape and format not those of what it holds."""
    return not weight.is_floating_point()
