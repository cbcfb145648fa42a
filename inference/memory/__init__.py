"""What saves memory on plain PyTorch modules: packed weights, and where weights lie."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.memory.choice import (
        GIB,
        RESERVE,
        MemoryNeeds,
        MemoryPlan,
        Offload,
        choose_memory,
        free_memory,
        in_words,
        peak_of,
        swapped_bytes,
        weight_bytes,
    )
    from inference.memory.placement import Placement, tiled
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
    from inference.memory.swapping import Swapping, chosen_blocks

__all__ = [
    "GIB", "RESERVE", "MemoryNeeds", "MemoryPlan", "Offload", "Packable", "Packing", "Placement",
    "Swapping", "choose_memory", "chosen_blocks", "free_memory", "in_words", "is_packed",
    "packed_bytes", "packed_layers", "peak_of", "plain_shape", "plain_weight", "quantize", "repack",
    "restorer", "swapped_bytes", "tiled", "unpacked_layer", "weight_bytes",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
