"""Memory of plain networks on a GPU."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
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

__all__ = [
    "CudaArithmetic", "Measured", "decoding_measured", "denoising_measured", "encoding_measured",
    "live_bytes", "on_meta", "prompts_measured", "with_tokenizer",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
