"""Where weights lie while a model works."""

from dataclasses import dataclass
from typing import ClassVar, Literal

Offload = Literal["none", "model_offload", "sequential_offload"]


@dataclass
class MemoryConfig:
    """Memory of the GPU: where weights lie while they are not in use."""

    short_form: ClassVar[str] = "offload"

    offload: Literal["auto", "none", "model_offload", "sequential_offload"] = "auto"
    """Where weights are kept: `none` all on the GPU; `model_offload` only the model part in use on
    the GPU; `sequential_offload` only the layer in use (several times slower). `auto` chooses by
    free memory and prints its choice. Has no effect on a CPU. `memory: none` is short for
    `memory: {offload: none}`."""
