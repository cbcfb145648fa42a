"""Adapters: small trained layers added to those of a base model, one file each."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.artifacts.adapters.base import Adapter, adapter, adapter_of
    from inference.artifacts.adapters.lora import Lora, LoraSpec, twin_of
    from inference.artifacts.adapters.lora_convert import (
        diffusers_note,
        save_diffusers,
        save_kohya,
    )
    from inference.artifacts.adapters.lora_formats import (
        format_of,
        is_lora,
        read_layers,
        says_alpha,
    )
    from inference.artifacts.adapters.lora_keys import part_of

__all__ = [
    "Adapter", "Lora", "LoraSpec", "adapter", "adapter_of", "diffusers_note", "format_of",
    "is_lora", "part_of", "read_layers", "save_diffusers", "save_kohya", "says_alpha", "twin_of",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
