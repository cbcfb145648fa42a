"""What saves memory on plain PyTorch modules: packed weights."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.memory.quantization import (
        Packable,
        Packing,
        is_packed,
        packed_bytes,
        packed_layers,
        plain_shape,
        plain_weight,
        quantize,
        repack,
        restorer,
        unpacked_layer,
    )

__all__ = [
    "Packable", "Packing", "is_packed", "packed_bytes", "packed_layers", "plain_shape",
    "plain_weight", "quantize", "repack", "restorer", "unpacked_layer",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
