"""What saves memory on plain PyTorch modules: where their weights lie."""

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
    from inference.memory.swapping import Swapping, chosen_blocks

__all__ = [
    "GIB", "RESERVE", "MemoryNeeds", "MemoryPlan", "Offload", "Placement", "Swapping",
    "choose_memory", "chosen_blocks", "free_memory", "in_words", "peak_of", "swapped_bytes",
    "tiled", "weight_bytes",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
