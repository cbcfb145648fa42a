"""Normal noise as NVIDIA's GPUs draw it, on any machine: A1111's RNG source `NV`.

The generator is Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
its numbers made normal by Box and Muller's formula, one number for each counter; as PyTorch's CUDA
generator gives them to small tensors.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor, from_numpy

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF
INVERSE = 2.0**-32
ANGLE = float(np.float32(2 * np.pi * INVERSE))  # rounded as on the GPU

Words = np.ndarray


class Philox:
    """Draws of one seed. Each draw is the next block of the sequence, whatever its size.

    Args:
        seed: 0 … 2^64 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.offset = 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of the shape, fp32, on the CPU."""
        index = np.arange(prod(shape), dtype=np.uint64)
        zero = np.zeros_like(index)
        words = philox4x32((zero + np.uint64(self.offset), zero, index, zero), self.seed)
        self.offset += 1
        noise = box_muller(words[0], words[1]).astype(np.float32)
        return from_numpy(noise.reshape(tuple(shape)))


def philox4x32(counter: Sequence[Words], key: int) -> tuple[Words, ...]:
    """Ten rounds over four words of 32 bits, each an array of uint64, with a key of 64 bits."""
    first, second, third, fourth = counter
    low_key, high_key = key & WORD, (key >> 32) & WORD
    for _ in range(ROUNDS):
        one, two = first * np.uint64(MULTIPLIERS[0]), third * np.uint64(MULTIPLIERS[1])
        first, second, third, fourth = (
            (two >> np.uint64(32)) ^ second ^ np.uint64(low_key),
            two & np.uint64(WORD),
            (one >> np.uint64(32)) ^ fourth ^ np.uint64(high_key),
            one & np.uint64(WORD),
        )
        low_key, high_key = (low_key + KEY_STEPS[0]) & WORD, (high_key + KEY_STEPS[1]) & WORD
    return first, second, third, fourth


def box_muller(first: Words, second: Words) -> np.ndarray:
    """Two words of 32 bits, each spread over the middle of its cell -> one normal number."""
    radius = np.sqrt(-2 * np.log(first * INVERSE + INVERSE / 2))
    return radius * np.sin(second * ANGLE + ANGLE / 2)
