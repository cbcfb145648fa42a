"""Where weights lie while a model works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from inference.config.models import BaseModelConfig

Faults = Iterator[tuple[str, str]]


@dataclass
class MemoryConfig:
    """Memory of the GPU: where weights lie while they are not in use (docs/memory.md)."""

    short_form: ClassVar[str] = "offload"

    offload: Literal["auto", "none", "model_offload", "sequential_offload", "group_offload"] = (
        "auto"
    )
    """Where weights are kept: `none` all on the GPU; `model_offload` only the model part in use on
    the GPU; `sequential_offload` only the layer in use (several times slower); `group_offload`, for
    clips, only one block of the transformer and the next one (diffusers' group offloading). `auto`
    chooses by free memory and prints its choice. Has no effect on a CPU. `memory: none` is short
    for `memory: {offload: none}`."""
    blocks_to_swap: float = 0
    """Blocks of the denoiser (UNet or transformer) whose weights lie in the system's memory, and
    come to the GPU only while they compute: a number of blocks, or a share below 1 (0.5 is half of
    them). The next block is copied while one computes. Has no effect on a CPU."""
    vae_slicing: bool = False
    """Encode and decode with the VAE one image of a batch at a time."""

    def faults(self) -> Faults:
        number = self.blocks_to_swap
        if number < 0 or (number >= 1 and number != int(number)):
            yield "blocks_to_swap", f"must be a whole number, or a share below 1, got {number}"

    @property
    def moves_layers(self) -> bool:
        """Whether single blocks or layers of the denoiser move while it computes."""
        return bool(self.blocks_to_swap) or self.offload in ("sequential_offload", "group_offload")

    def idle_on(self, device: str) -> str | None:
        """Return a warning about levers that do nothing on a device that is no GPU."""
        idle = [self.offload] if self.offload not in ("auto", "none") else []
        idle += ["blocks_to_swap"] if self.blocks_to_swap else []
        verb = "have" if len(idle) > 1 else "has"
        return f"memory: {', '.join(idle)} {verb} no effect on {device}" if idle else None


def swapping_faults(memory: MemoryConfig, base_model: BaseModelConfig) -> Faults:
    """Yield levers that exclude each other, or packed weights."""
    moves_layers = memory.offload in ("sequential_offload", "group_offload")
    if memory.blocks_to_swap and moves_layers:
        why = f"cannot go with offload: {memory.offload}, which moves all blocks"
        yield "memory.blocks_to_swap", why
    if base_model.moves_by_layer:
        return
    packing = base_model.quantization
    why = f"cannot move layers of bitsandbytes (base_model.quantization: {packing}); fp8 can move"
    if moves_layers:
        yield "memory.offload", f"{memory.offload} {why}"
    if memory.blocks_to_swap:
        yield "memory.blocks_to_swap", why


def pictures_have_no_groups(memory: MemoryConfig) -> Faults:
    """Yield group offloading of a UNet, whose groups are unlike."""
    if memory.offload == "group_offload":
        yield (
            "memory.offload",
            "group_offload is for clips: a UNet's groups are of unlike sizes, the largest a third "
            "of it; memory.blocks_to_swap moves smaller blocks in the same way",
        )
