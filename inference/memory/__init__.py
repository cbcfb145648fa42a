"""What saves memory on plain PyTorch modules, and how much they take."""

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
    from inference.memory.cuda_arithmetic import CudaArithmetic
    from inference.memory.measuring import live_bytes, on_meta
    from inference.memory.phases import (
        Measured,
        decoding_measured,
        denoising_measured,
        encoding_measured,
        prompts_measured,
        with_tokenizer,
    )
    from inference.memory.placement import Placement, enable_tiles, tiled
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
    "GIB", "RESERVE", "CudaArithmetic", "Measured", "MemoryNeeds", "MemoryPlan", "Offload",
    "Packable", "Packing", "Placement", "Swapping", "choose_memory", "chosen_blocks",
    "decoding_measured", "denoising_measured", "enable_tiles", "encoding_measured", "free_memory",
    "in_words", "is_packed", "live_bytes", "on_meta", "packed_bytes", "packed_layers", "peak_of",
    "plain_shape", "plain_weight", "prompts_measured", "quantize", "repack", "restorer",
    "swapped_bytes", "tiled", "unpacked_layer", "weight_bytes", "with_tokenizer",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
