"""Random numbers as functions of counters, so that none depends on earlier ones.

Every random number of a run is derived from (seed, purpose, counters): counter-based, as in Salmon
et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A resumed run, any number of loader
workers and any number of processes therefore see the same numbers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from inference.runtime import to_device


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a number in 0 … 2^63-1 that depends on all arguments."""
    words = b"".join(value.to_bytes(8, "little", signed=True) for value in (seed, *counters))
    digest = hashlib.blake2b(words, digest_size=8, person=purpose.encode()[:16]).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a CPU generator at the start of the stream of these counters."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *counters))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws; restore their states afterwards.

    Args:
        seed: of the generators inside the block.
        device: the accelerator that the block computes on, or the CPU.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def normal(like: Tensor, seed: int, purpose: str, counters: Sequence[int]) -> Tensor:
    """Return standard normal noise of the shape of `like` (b, ...), drawn on the CPU by counter."""
    shape = like.shape[1:]
    draws = [torch.randn(shape, generator=generator(seed, purpose, i)) for i in counters]
    return to_device(torch.stack(draws).to(like.dtype), like.device)
