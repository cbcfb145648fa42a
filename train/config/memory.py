"""Typed options of the memory of a training run."""

from dataclasses import dataclass
from typing import Literal

from inference.config import MemoryConfig


@dataclass
class TrainMemoryConfig(MemoryConfig):
    """Memory of the GPU in training: where weights and trained state lie (docs/memory.md)."""

    offload: Literal["auto", "none", "model_offload"] = "auto"  # type: ignore[assignment]
    """Where the parts of the base model are kept: `none` all on the GPU; `model_offload` only those
    at work: text encoders while captions are encoded, the VAE while latents are encoded or decoded,
    and in the steps the denoiser with what a step uses. `auto` takes `none` if the plan of the run
    fits into free memory, and prints its choice. What is trained always stays on the GPU. Has no
    effect on a CPU, nor on results. `memory: none` is short for `memory: {offload: none}`."""
    blocks_to_swap: float = 0
    """Blocks of the denoiser (UNet or transformer) whose frozen weights lie in the system's memory,
    and come to the GPU only while they compute, in the backward pass too: a number of blocks, or a
    share below 1 (0.5 is half of them). The next block is copied while one computes. Has no effect
    on a CPU, nor on results."""
