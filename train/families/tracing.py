"""The memory of a network's forward and backward pass, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

LIVE_TENSORS = 6
"""In multiples of the largest layer's output, without gradients: a ResNet block's input, norm,
activation and
convolution, the sum, and the convolution's workspace."""


@dataclass
class Traced:
    """Numbers of values, from one pass on the meta device."""

    leaves: int = 0
    """Outputs of all layers, about the memory that a pass with gradients keeps."""
    largest: int = 0
    """The largest output."""
    outlines: int = 0
    """Outputs of the blocks that gradient checkpointing applies to."""
    largest_block: int = 0
    """Outputs of all layers of the largest of these blocks."""

    def kept(self, is_checkpointing: bool) -> int:
        """Return the values that a pass with gradients keeps."""
        if is_checkpointing and self.outlines:
            return self.outlines + self.largest_block
        return self.leaves


BLOCKS = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "CLIPEncoderLayer",
    "T5Block",
    "CogVideoXResnetBlock3D",
)
"""Classes that gradient checkpointing applies to, in diffusers and transformers."""


def traced(network: nn.Module, run: Callable[[], object]) -> Traced:
    """Trace the layers' outputs of a network on the meta device when `run` calls it, in fp32.

    Every layer's output is the input of another layer, which is what autograd keeps of it; its
    other values (masks, attention's row sums) are left out.
    """
    found, handles, open_blocks = Traced(), [], [0]

    def leaf(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            count = prod(output.shape)
            found.leaves += count
            found.largest = max(found.largest, count)
            open_blocks[-1] += count

    def begin(module: nn.Module, inputs: object) -> None:
        open_blocks.append(0)

    def end(module: nn.Module, inputs: object, output: Any) -> None:
        inside = open_blocks.pop()
        open_blocks[-1] += inside
        first = output[0] if isinstance(output, tuple) else output
        found.outlines += prod(first.shape)
        found.largest_block = max(found.largest_block, inside)

    for module in network.modules():
        if type(module).__name__ in BLOCKS:
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        elif not any(module.children()):
            handles.append(module.register_forward_hook(leaf))
    try:
        with torch.no_grad(), in_fp32(network):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def in_fp32(network: nn.Module) -> Iterator[None]:
    """Convert a network on the meta device to fp32 inside the context."""
    kept = [(one, one.data) for one in (*network.parameters(), *network.buffers())]
    for one, data in kept:
        one.data = data.float() if data.is_floating_point() else data
    try:
        yield
    finally:
        for one, data in kept:
            one.data = data
