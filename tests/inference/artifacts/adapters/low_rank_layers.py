"""The layers of a LoRA as what they are: low-rank, not any adapter."""

from __future__ import annotations

from inference.artifacts.adapters.lora import Lora
from inference.artifacts.adapters.low_rank import LowRank


def low_rank(lora: Lora, name: str) -> LowRank:
    """Return the layer of a name, which must be low-rank."""
    layer = lora.layers[name]
    assert isinstance(layer, LowRank), f"{name} is {type(layer).__name__}"
    return layer


def low_ranks(lora: Lora) -> dict[str, LowRank]:
    """Return all layers, which must be low-rank, by their names."""
    return {name: low_rank(lora, name) for name in lora.layers}
